"""Give all splits of a source the same labels: label `i` means the same class in each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sharding.errors import SourceError
from sharding.manifest import ClassInfo
from sharding.sources.listing import Listing

SAME_CLASSES_ADVICE = "Pack both from the same classes, or give the whole list with --classes."


def align_labels(listings: Sequence[Listing], others: Sequence[Listing]) -> list[Listing]:
    """Give the splits of a source the labels of the split whose classes include those of all others.

    Args:
        listings: the splits to pack.
        others: further splits of the source. One that contradicts only adds a note: packing that split refuses it.

    Returns:
        `listings`, with labels that mean the same in each.

    Raises:
        SourceError: the classes of two splits to pack contradict each other.
    """
    largest = max([*listings, *others], key=lambda listing: len(listing.classes))
    aligned = []
    for listing in listings:
        extra = classes_not_in(listing.classes, largest.classes)
        if extra and any(largest is other for other in others):
            remaining = [other for other in others if other is not largest]
            note = (
                f"the {largest.split} split has other classes (it lacks {first_few(extra)}), so its labels differ too"
            )
            return [_with_note(entry, note) for entry in align_labels(listings, remaining)]
        if extra:
            raise SourceError(
                f"the {listing.split} split has {len(extra)} classes that the {largest.split} split does not have "
                f"({first_few(extra)}): their labels would contradict. {SAME_CLASSES_ADVICE}"
            )
        aligned.append(relabel(listing, largest.classes, f"the {largest.split} split"))
    return aligned


def relabel(listing: Listing, classes: tuple[ClassInfo, ...], where: str) -> Listing:
    """Give a listing the labels of a class list that contains all its classes.

    Args:
        listing: the split.
        classes: the class list to use; label `i` then means `classes[i]`.
        where: origin of the class list, for the note.
    """
    old_ids, new_ids = class_ids(listing.classes), class_ids(classes)
    if old_ids == new_ids:
        return listing
    label = {wnid: position for position, wnid in enumerate(new_ids)}
    labels = np.array([label[wnid] for wnid in old_ids], np.int32)[listing.labels]
    note = f"labels follow the {len(new_ids)} classes of {where}; this split holds {len(old_ids)} of them"
    return _with_note(dataclasses.replace(listing, classes=classes, labels=labels), note)


def class_ids(classes: Sequence[ClassInfo]) -> list[str]:
    """The ids of the classes, in the order of their labels."""
    return [entry.wnid for entry in classes]


def classes_not_in(classes: Sequence[ClassInfo], other: Sequence[ClassInfo]) -> list[str]:
    """The ids of `classes` that are not in `other`, sorted; all of them where ids repeat and the lists differ."""
    ids, other_ids = class_ids(classes), class_ids(other)
    if ids != other_ids and len(set(other_ids)) < len(other_ids):
        return ids  # classes with the same id cannot be told apart
    return sorted(set(ids) - set(other_ids))


def first_few(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _with_note(listing: Listing, note: str) -> Listing:
    return dataclasses.replace(listing, notes=(*listing.notes, note))
