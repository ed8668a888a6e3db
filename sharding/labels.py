"""Splits of one name in one output folder share their classes: two checks against the splits already published."""

from __future__ import annotations

from sharding.errors import OutputError
from sharding.manifest import ClassInfo, find_manifests
from sharding.sources.labels import SAME_CLASSES_ADVICE, class_ids, classes_not_in, first_few, relabel
from sharding.sources.listing import Listing
from sharding.storage import Folder


def align_with_published(output: Folder, name: str, listing: Listing) -> Listing:
    """Give a listing the labels of the splits already published under the same name.

    A split that lacks some of the published classes takes their labels; a split with additional classes is refused.

    Args:
        output: folder of the shards.
        name: prefix of all files.
        listing: the split to pack.

    Raises:
        OutputError: the split has classes that a published split does not have.
    """
    for split, published in _published_classes(output, name, listing.split):
        extra = classes_not_in(listing.classes, published)
        if extra:
            raise OutputError(
                f"{output.location} holds {name}-{split} with {len(published)} classes, and this {listing.split} split "
                f"has {len(extra)} others ({first_few(extra)}): their labels would contradict. {SAME_CLASSES_ADVICE}"
            )
        listing = relabel(listing, published, f"{name}-{split}")
    return listing


def check_against_published(output: Folder, name: str, listing: Listing, work_folder: str) -> None:
    """Refuse to publish beside a split that another build has published since, with other classes.

    Args:
        output: folder of the shards.
        name: prefix of all files.
        listing: the split to publish.
        work_folder: location of the unfinished build's folder, for the message.

    Raises:
        OutputError: a published split gives other meanings to the labels.
    """
    for split, published in _published_classes(output, name, listing.split):
        if class_ids(published) != class_ids(listing.classes):
            advice = (
                "Pack both into another --output, from one source that holds both or with the same --classes."
                if classes_not_in(listing.classes, published)
                else f"Remove {work_folder} and the shards of {name}-{listing.split}, and give this command again."
            )
            raise OutputError(
                f"{name}-{split} was published in {output.location} meanwhile with {len(published)} classes, and this "
                f"{listing.split} split has {len(listing.classes)}: their labels contradict. Nothing was published. "
                f"{advice}"
            )


def _published_classes(output: Folder, name: str, excluded_split: str) -> list[tuple[str, tuple[ClassInfo, ...]]]:
    """The published splits of a name, except one, and the classes of each."""
    found = sorted(find_manifests(output).items())
    return [
        (split, manifest.classes) for (prefix, split), manifest in found if prefix == name and split != excluded_split
    ]
