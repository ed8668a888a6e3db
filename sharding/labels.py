"""One meaning for each label: the splits of one name in one output share their list of classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sharding.errors import OutputError, SourceError
from sharding.manifest import ClassInfo, find_manifests
from sharding.storage import Folder

if TYPE_CHECKING:
    from sharding.sources import Listing

_HOW = "Pack both from the same classes, or give the whole list with --classes."


def agree(listings: Sequence[Listing], others: Sequence[Listing]) -> list[Listing]:
    """Give the splits of a source the labels of the one that has the classes of all.

    Args:
        listings: of the splits to pack.
        others: of splits that the source holds too; one that contradicts is left to whoever packs it.

    Returns:
        `listings`, with labels that mean the same in each.

    Raises:
        SourceError: the classes of two splits to pack contradict one another.
    """
    whole = max([*listings, *others], key=lambda listing: len(listing.classes))
    agreed = []
    for listing in listings:
        extra = _missing(listing.classes, whole.classes)
        if extra and any(whole is other for other in others):
            without = [other for other in others if other is not whole]
            note = f"the {whole.split} split has other classes (it lacks {_some(extra)}), so its labels are others too"
            return [_with_note(entry, note) for entry in agree(listings, without)]
        if extra:
            raise SourceError(
                f"the {listing.split} split has {len(extra)} classes that the {whole.split} split does not have "
                f"({_some(extra)}): their labels would contradict. {_HOW}"
            )
        agreed.append(_follow(listing, whole.classes, f"the {whole.split} split"))
    return agreed


def agree_with_published(output: Folder, name: str, listing: Listing) -> Listing:
    """Give the listing the labels of the other splits already packed under this name.

    A split that lacks some of their classes takes their labels; one with classes they do not have is refused.

    Raises:
        OutputError: the splits' classes contradict one another.
    """
    for split, theirs in _published_classes(output, name, listing.split):
        extra = _missing(listing.classes, theirs)
        if extra:
            raise OutputError(
                f"{output.location} holds {name}-{split} with {len(theirs)} classes, and this {listing.split} split "
                f"has {len(extra)} others ({_some(extra)}): their labels would contradict. {_HOW}"
            )
        listing = _follow(listing, theirs, f"{name}-{split}")
    return listing


def check_published(output: Folder, name: str, listing: Listing, parts: str) -> None:
    """Refuse to publish beside a split that came meanwhile and gives its labels other meanings.

    Args:
        output: folder of the shards.
        name: prefix of all files.
        listing: what is to be published.
        parts: the unfinished build's folder, for the message.

    Raises:
        OutputError: which split, and what to do.
    """
    for split, theirs in _published_classes(output, name, listing.split):
        if class_ids(theirs) != class_ids(listing.classes):
            advice = (
                "Pack both into another --output, from one source that holds both or with the same --classes."
                if _missing(listing.classes, theirs)
                else f"Remove {parts} and the shards of {name}-{listing.split}, and give this command again."
            )
            raise OutputError(
                f"{name}-{split} was published in {output.location} meanwhile with {len(theirs)} classes, and this "
                f"{listing.split} split has {len(listing.classes)}: their labels contradict. Nothing was published. "
                f"{advice}"
            )


def class_ids(classes: Sequence[ClassInfo]) -> list[str]:
    """What tells classes apart, in the order of their labels."""
    return [entry.wnid for entry in classes]


def _published_classes(output: Folder, name: str, but: str) -> list[tuple[str, tuple[ClassInfo, ...]]]:
    found = sorted(find_manifests(output).items())
    return [(split, manifest.classes) for (prefix, split), manifest in found if prefix == name and split != but]


def _follow(listing: Listing, classes: tuple[ClassInfo, ...], where: str) -> Listing:
    """The listing with the labels of a list that has all its classes."""
    mine, theirs = class_ids(listing.classes), class_ids(classes)
    if mine == theirs:
        return listing
    label = {wnid: position for position, wnid in enumerate(theirs)}
    labels = np.array([label[wnid] for wnid in mine], np.int32)[listing.labels]
    note = f"labels follow the {len(theirs)} classes of {where}; this split holds {len(mine)} of them"
    return _with_note(dataclasses.replace(listing, classes=classes, labels=labels), note)


def _with_note(listing: Listing, note: str) -> Listing:
    return dataclasses.replace(listing, notes=(*listing.notes, note))


def _missing(classes: Sequence[ClassInfo], among: Sequence[ClassInfo]) -> list[str]:
    mine, theirs = class_ids(classes), class_ids(among)
    if mine != theirs and len(set(theirs)) < len(theirs):
        return mine  # classes of one name cannot be told apart
    return sorted(set(mine) - set(theirs))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
