"""What the whole of ImageNet-1K is, to say when something of it is missing."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sharding.manifest import ClassInfo

NUM_CLASSES = 1000
NUM_IMAGES = {"train": 1_281_167, "validation": 50_000}
# Fewest and most images of a class.
PER_CLASS = {"train": (732, 1300), "validation": (50, 50)}

_WNID = re.compile(r"^n\d{8}$")


def is_imagenet(classes: Sequence[ClassInfo], split: str) -> bool:
    """Whether a split has 1000 classes with WordNet ids, and ImageNet has such a split."""
    return split in NUM_IMAGES and len(classes) == NUM_CLASSES and has_wordnet_ids(classes)


def has_wordnet_ids(classes: Sequence[ClassInfo]) -> bool:
    """Whether every class is named as ImageNet's are, such as n01440764."""
    return all(_WNID.match(entry.wnid) for entry in classes)


def audit(split: str, labels: NDArray[np.int32], classes: Sequence[ClassInfo]) -> list[str]:
    """What a split lacks of ImageNet, or has too much; empty when it is the whole of it.

    Args:
        split: `train` or `validation`.
        labels: of all its samples.
        classes: all 1000.
    """
    faults = []
    if len(labels) != NUM_IMAGES[split]:
        faults.append(f"{len(labels):,} images; ImageNet's {split} split has {NUM_IMAGES[split]:,}")
    least, most = PER_CLASS[split]
    counts = np.bincount(labels, minlength=len(classes))
    for label in np.flatnonzero((counts < least) | (counts > most)).tolist():
        expected = f"{least}" if least == most else f"{least} to {most}"
        faults.append(f"class {classes[label].wnid} has {counts[label]} images; in ImageNet a class has {expected}")
    return faults
