"""Group the members of a WebDataset tar into samples: members whose names agree up to the first dot.

The members of a sample may lie anywhere in the tar: a tar sorted by another order than that of the bytes separates
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import xxhash

from sharding.errors import ImageError, SourceError
from sharding.images import MAX_IMAGE_BYTES
from sharding.tarfiles import Member

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_FIELDS = ("cls", "json")
_LONGEST_FIELD = 16 << 20  # bytes of KEY.cls or KEY.json


class IndexedImage(NamedTuple):
    """An image as the index describes it.

    Attributes:
        columns: the columns of the index that depend on the image.
        oddity: what is unusual about the image; None if nothing is.
    """

    columns: dict[str, Any]
    oddity: str | None


DescribeImage = Callable[[Member, bytes], IndexedImage]


@dataclass
class Sample:
    """The members of a tar that have one key.

    Attributes:
        key: folder and name up to the first dot.
        members: name of each member, by extension in lower case.
        fields: content of KEY.cls and KEY.json, and of the label map if there is one.
        places: offset, size and xxh64 of each of these, as the index names them.
        images: for each member that may be the image its description, or the reason why it cannot be read.
        are_neighbours: whether the members follow one another in the tar.
        is_repeated: whether two members have the same extension.
    """

    key: str
    members: dict[str, str] = field(default_factory=dict)
    fields: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, dict[str, int]] = field(default_factory=dict)
    images: dict[str, IndexedImage | ImageError] = field(default_factory=dict)
    are_neighbours: bool = True
    is_repeated: bool = False

    @property
    def is_foreign(self) -> bool:
        """Whether the members are neither image nor label, as in README.txt: they belong to no sample."""
        return not self.images and not any(extension in LABEL_FIELDS for extension in self.members)

    def target(self, extension: str) -> dict[str, int]:
        """The columns of the index that say where a member with the target is.

        Raises:
            SourceError: the sample has no such member.
        """
        if extension not in self.places:
            raise SourceError(f"no KEY.{extension} among its members ({', '.join(self.members)})")
        return self.places[extension]

    def image(self) -> IndexedImage:
        """The sample's image.

        An extension that names a format, as in KEY.jpg, goes before a longer one, as in KEY.input.jpg.

        Raises:
            SourceError: the sample has no image, or several.
            ImageError: the image cannot be read.
        """
        listed = ", ".join(self.members)
        if not self.images:
            raise SourceError(f"no image among its members ({listed}); --image-member EXT names another extension")
        plain = [extension for extension in self.images if "." not in extension]
        candidates = plain or list(self.images)
        if len(candidates) > 1:
            raise SourceError(f"several images among its members ({listed}): name one of them with --image-member")
        found = self.images[candidates[0]]
        if isinstance(found, ImageError):
            raise found
        return found


@dataclass
class TarSamples:
    """The samples of one tar, complete once all its members were given to `add`.

    Attributes:
        image_member: extension of the image; None takes the usual ones.
        label_map: extension of the label map; None where a sample has a label.
        samples: samples by key, in the order of their first members.
        left_out: names of the members that belong to no sample.
    """

    image_member: str | None = None
    label_map: str | None = None
    samples: dict[str, Sample] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    _last: Sample | None = None

    def add(self, member: Member, read: Callable[[Member], bytes], describe: DescribeImage) -> None:
        """Add the next member of the tar.

        Args:
            member: the member.
            read: reads its content; called for images and labels only.
            describe: describes an image for the index; raises ImageError if it cannot be read.

        Raises:
            SourceError: an image or a label is larger than allowed.
        """
        folder, _, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not stem or not dot:  # README, and `._x.jpg` of macOS: WebDataset skips them too
            self.left_out.append(member.name)
            return
        key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
        sample = self.samples.setdefault(key, Sample(key))
        sample.are_neighbours &= not sample.members or sample is self._last
        self._last = sample
        if extension in sample.members:
            sample.is_repeated = True
            return
        sample.members[extension] = member.name
        if extension in (*LABEL_FIELDS, self.label_map):
            _check_size(member, _LONGEST_FIELD)
            content = sample.fields[extension] = read(member)
            sample.places[extension] = {
                "target_offset": member.offset,
                "target_size": member.size,
                "target_xxh64": xxhash.xxh64_intdigest(content),
            }
        elif self._may_be_image(sample, extension):
            _check_size(member, MAX_IMAGE_BYTES)
            try:
                sample.images[extension] = describe(member, read(member))
            except ImageError as error:
                sample.images[extension] = error

    def finish(self) -> Iterator[Sample]:
        """Iterate over the samples; the members of the others are added to `left_out`."""
        for sample in self.samples.values():
            if sample.is_foreign:
                self.left_out += sample.members.values()
            else:
                yield sample

    def _may_be_image(self, sample: Sample, extension: str) -> bool:
        if self.image_member is not None:
            return extension == self.image_member.lower().lstrip(".")
        has_plain = any("." not in other for other in sample.images)
        return extension.rpartition(".")[2] in IMAGE_EXTENSIONS and not ("." in extension and has_plain)


def _check_size(member: Member, most: int) -> None:
    if member.size > most:
        raise SourceError(f"holds {member.name} of {member.size:,} bytes; {most:,} are allowed")
