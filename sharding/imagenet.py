"""The sizes of the complete ImageNet-1K, to report where a split differs from them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sharding.manifest import ClassInfo

NUM_CLASSES = 1000
NUM_IMAGES = {"train": 1_281_167, "validation": 50_000}
# The smallest and the largest number of images of a class.
PER_CLASS = {"train": (732, 1300), "validation": (50, 50)}

_WNID = re.compile(r"^n\d{8}$")


def is_imagenet(classes: Sequence[ClassInfo], split: str) -> bool:
    """Whether a split has 1000 classes with WordNet ids, and ImageNet has a split of this name."""
    return split in NUM_IMAGES and len(classes) == NUM_CLASSES and has_wordnet_ids(classes)


def is_whole_imagenet(split: str, labels: NDArray[np.int32], classes: Sequence[ClassInfo]) -> bool:
    """Whether a split has the classes of ImageNet and as many images in each."""
    return is_imagenet(classes, split) and not compare_with_imagenet(split, labels, classes)


def has_wordnet_ids(classes: Sequence[ClassInfo]) -> bool:
    """Whether the id of every class has the form of a WordNet id, such as n01440764."""
    return all(_WNID.match(entry.wnid) for entry in classes)


def compare_with_imagenet(split: str, labels: NDArray[np.int32], classes: Sequence[ClassInfo]) -> list[str]:
    """List how the numbers of images differ from those of ImageNet; empty for the complete split.

    Args:
        split: `train` or `validation`.
        labels: int32 `[samples]`, the labels of all samples of the split.
        classes: all 1000 classes, by label.
    """
    differences = []
    if len(labels) != NUM_IMAGES[split]:
        differences.append(f"{len(labels):,} images; ImageNet's {split} split has {NUM_IMAGES[split]:,}")
    least, most = PER_CLASS[split]
    counts = np.bincount(labels, minlength=len(classes))
    for label in np.flatnonzero((counts < least) | (counts > most)).tolist():
        expected = f"{least}" if least == most else f"{least} to {most}"
        differences.append(
            f"class {classes[label].wnid} has {counts[label]} images; in ImageNet a class has {expected}"
        )
    return differences
