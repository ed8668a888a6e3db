"""Class lists: the label of a class is its position in the list sorted by WordNet id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sharding.errors import SourceError
from sharding.manifest import ClassInfo
from sharding.storage import Folder

SYNSET_MAPPING = "LOC_synset_mapping.txt"
_NUMBER = re.compile(r"^(0|[1-9][0-9]*)$")
_LONGEST_LIST = 16 << 20  # bytes


@dataclass(frozen=True)
class ClassList:
    """All classes of a data set in the order of their labels.

    Attributes:
        classes: label `i` means `classes[i]`.
        origin: name of the file that lists them; empty where they are the class folders of the source.
    """

    classes: tuple[ClassInfo, ...]
    origin: str = ""

    def labels(self, wnids: Iterable[str], where: str) -> dict[str, int]:
        """Look up the label of each class id.

        Args:
            wnids: the class ids.
            where: where the ids were found, for the message.

        Raises:
            SourceError: an id is not in the list.
        """
        label = {entry.wnid: position for position, entry in enumerate(self.classes)}
        if not set(wnids) & set(label) and all(_NUMBER.match(wnid) for wnid in wnids):
            label = {str(position): position for position in range(len(self.classes))}  # as ImageNet-V2 names folders
        unknown = sorted(set(wnids) - set(label))
        if unknown:
            raise SourceError(
                f"{where}: {len(unknown)} classes are unknown to {self.origin or 'the classes found'}: "
                f"{', '.join(unknown[:5])}. Remove them, or give the list they are in with --classes."
            )
        return {wnid: label[wnid] for wnid in wnids}


def read_synset_mapping(text: str, origin: str) -> ClassList:
    """Parse lines such as `n01440764 tench, Tinca tinca`, in any order.

    Raises:
        SourceError: a class id is repeated.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        wnid, _, name = line.strip().partition(" ")
        if wnid in names:
            raise SourceError(f"{origin}, line {number}: class {wnid!r} comes a second time")
        names[wnid] = name.strip() or wnid
    return ClassList(tuple(ClassInfo(wnid, names[wnid]) for wnid in sorted(names)), origin)


def find_class_list(root: Folder, given: str | None) -> ClassList | None:
    """Read the class list of --classes, or else the synset mapping in the source; None if there is neither.

    Args:
        root: folder of the source.
        given: the value of --classes, if any.

    Raises:
        SourceError: the file of --classes does not exist, or a file is not a list of classes.
    """
    if given is not None:
        folder, name = Folder.of_file(given)
        if folder.size(name) is None:
            raise SourceError(f"--classes {given}: there is no such file")
        return _read(folder, name, given)
    if root.size(SYNSET_MAPPING) is not None:
        return _read(root, SYNSET_MAPPING, SYNSET_MAPPING)
    return None


def _read(folder: Folder, name: str, origin: str) -> ClassList:
    if (folder.size(name) or 0) > _LONGEST_LIST:
        raise SourceError(f'{origin} is too large to be a list of classes; its lines should be "n01440764 tench"')
    try:
        return read_synset_mapping(folder.read(name).decode(), origin)
    except UnicodeDecodeError as error:
        raise SourceError(
            f'{origin} is not a list of classes: byte {error.start} is not UTF-8; its lines should be "n01440764 tench"'
        ) from error
