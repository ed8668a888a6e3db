"""Class lists: the label of a class is its position in the list sorted by WordNet id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sharding.errors import SourceError
from sharding.manifest import ClassInfo

SYNSET_MAPPING = "LOC_synset_mapping.txt"
_NUMBER = re.compile(r"^(0|[1-9][0-9]*)$")


@dataclass(frozen=True)
class ClassList:
    """All classes of a data set in the order of their labels.

    Attributes:
        classes: label `i` means `classes[i]`.
        origin: name of the file that lists them; empty where they are the class folders of the source.
        form: how the file was read, as a phrase.
        whole_lines: the classes if each line of the file is one name with spaces; empty where that is no question.
    """

    classes: tuple[ClassInfo, ...]
    origin: str = ""
    form: str = ""
    whole_lines: tuple[ClassInfo, ...] = ()

    def fitting(self, ids: Iterable[str]) -> ClassList:
        """The list that these ids are in: a line `golden retriever` is an id and a name, or one name with a space."""
        wanted, whole = set(ids), {entry.wnid for entry in self.whole_lines}
        if wanted <= whole and not wanted <= {entry.wnid for entry in self.classes}:
            return ClassList(self.whole_lines, self.origin, "one class name a line")
        return self

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
