"""The comparison with the complete ImageNet."""

import numpy as np

from sharding.imagenet import NUM_IMAGES, compare_with_imagenet, is_imagenet
from sharding.manifest import ClassInfo


def test_differences_from_imagenet_are_counted_by_class():
    classes = [ClassInfo(f"n{number:08d}", "") for number in range(1000)]
    assert is_imagenet(classes, "validation")
    assert not is_imagenet(classes[:999], "validation")
    labels = np.arange(50_000, dtype=np.int32) % 1000
    assert compare_with_imagenet("validation", labels, classes) == []
    labels[0] = 1
    assert compare_with_imagenet("validation", labels, classes) == [
        "class n00000000 has 49 images; in ImageNet a class has 50",
        "class n00000001 has 51 images; in ImageNet a class has 50",
    ]
    short = compare_with_imagenet("train", np.arange(1_281_000, dtype=np.int32) % 1000, classes)
    assert short == [f"1,281,000 images; ImageNet's train split has {NUM_IMAGES['train']:,}"]
