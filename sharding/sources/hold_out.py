"""Divide images that have no splits into training and validation."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from sharding.division import PARTS
from sharding.errors import SourceError
from sharding.plan import sample_hashes
from sharding.source_format import SourceFormat
from sharding.sources.detect import find_splits, list_source, open_source
from sharding.sources.listing import Listing, keep_samples


def list_divided(
    location: str,
    share: float,
    split: str | None,
    source_format: SourceFormat | None = None,
    classes: str | None = None,
    image_member: str | None = None,
    *,
    seed: int = 0,
) -> list[Listing]:
    """List a source of training images as a split `train` and a split `validation`.

    Each class gives its share of images to the validation, at least one and not all; a class with a single image keeps
    it for training. The choice is by a hash of the keys, so it depends neither on the order of the files nor on the
    machine.

    Args:
        location: folder or URI of the source.
        share: share of the images of each class that is held out, between 0 and 1.
        split: the split to list; None lists both.
        source_format: form of the source; None detects it.
        classes: see `list_split`.
        image_member: see `list_split`.
        seed: seed of the hash.

    Raises:
        SourceError: the source has a validation split, its images cannot be read one by one, no class has two images,
            or as `list_split`.
    """
    if split not in (None, *PARTS):
        raise SourceError(f"--hold-out divides a source into train and validation: there is no --split {split}")
    splits = find_splits(open_source(location), source_format)
    if "validation" in splits:
        raise SourceError(f"{location} has a validation split of its own: leave --hold-out out")
    [whole] = list_source(location, "train", source_format, classes, image_member)
    if whole.blocks is not None:
        raise SourceError(f"--hold-out does not divide parquet files, such as those of {location}: leave it out")
    held_out = _choose(whole.keys.to_pylist(), whole.labels, share, seed)
    if not held_out.any():
        raise SourceError(f"no class of {location} has two images, so --hold-out would leave one part empty")
    single = int((np.bincount(whole.labels) == 1).sum())
    notes = [f"{single:,} classes have one image each, which is not held out"] if single else []
    if split is None and "test" in splits:
        notes.append("the split test is left out: --split test without --hold-out packs it")
    parts = {
        "train": keep_samples(whole, np.flatnonzero(~held_out), "train", *notes),
        "validation": keep_samples(whole, np.flatnonzero(held_out), "validation"),
    }
    first, *rest = (parts[name] for name in PARTS if split in (None, name))
    # A fault is of the whole source: it is told and counted once.
    return [first, *(dataclasses.replace(part, faults=()) for part in rest)]


def _choose(keys: list[str], labels: NDArray[np.int32], share: float, seed: int) -> NDArray[np.bool_]:
    """Return which samples are held out, bool [samples]."""
    counts = np.bincount(labels)
    taken = np.maximum(np.minimum(np.maximum(np.rint(counts * share), 1), counts - 1), 0)
    by_class = np.lexsort((sample_hashes(keys, seed), labels))
    place_in_class = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    held_out = np.zeros(len(keys), bool)
    held_out[by_class] = place_in_class < np.repeat(taken, counts)
    return held_out
