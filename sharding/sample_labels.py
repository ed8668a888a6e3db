"""What one sample of a tar says about its class: its label, and the ids and names of its class.

A label may stand in KEY.cls and KEY.json, a WordNet id in KEY.json, in the key, in its folders and in the name of the
original file, a class name in KEY.json. All that one sample says must agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sharding.errors import SourceError
from sharding.manifest import MAX_CLASSES

WNID = re.compile(r"^n\d{8}$")
_WNID_IN_NAME = re.compile(r"(?:^|[/_])(n\d{8})(?=[/_]|$)")
_WHOLE_NUMBER = re.compile(r"^\s*([+-]?[0-9]{1,19})\s*$")
_ID_FIELDS = ("class", "wnid", "synset", "class_id")
_NAME_FIELDS = ("class", "class_name", "label")
ID = "id"
"""Kind of a claim that holds a WordNet id; all other kinds are the field of KEY.json that holds a class name."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """The label of a sample, and what the sample says about the class.

    Attributes:
        label: the label, from 0.
        claims: (kind, value) pairs: `ID` and a WordNet id, or a field of KEY.json and a class name.
    """

    label: int
    claims: tuple[tuple[str, str], ...]


def read_label(key: str, fields: Mapping[str, bytes]) -> Labelled:
    """Read the label of a sample and all that it says about its class.

    Args:
        key: key of the sample, with its folders.
        fields: content of KEY.cls and KEY.json, as far as the sample has them.

    Raises:
        SourceError: there is no label, or the sources of the sample contradict each other.
    """
    description = _read_json(fields)
    in_json = _number(description.get("label"))
    label = _number(fields["cls"].decode("utf-8", "replace")) if "cls" in fields else in_json
    if label is None:
        found = repr(fields["cls"][:20].decode("utf-8", "replace")) if "cls" in fields else "missing"
        raise SourceError(f"no label: KEY.cls ({found}) or else `label` in KEY.json must be a whole number")
    if not 0 <= label < MAX_CLASSES:
        raise SourceError(f"label {label} is not from 0 to {MAX_CLASSES - 1:,}")
    if in_json is not None and in_json != label:
        raise SourceError(f"KEY.cls says label {label}, KEY.json {in_json}")
    explicit = {field: value for field in _ID_FIELDS if isinstance(value := description.get(field), str)}
    ids = {f"`{field}` in KEY.json": value for field, value in explicit.items() if WNID.match(value)}
    names = [
        (field, value)
        for field in _NAME_FIELDS
        if isinstance(value := description.get(field), str)
        and not WNID.match(value)
        and (field != "label" or _number(value) is None)
    ]
    if ids or not names:  # with other classes than WordNet's, an id in a file name is not the class
        ids |= _ids_in_names(key, description)
    if len(set(ids.values())) > 1:
        raise SourceError("its classes contradict: " + ", ".join(f"{value} in {where}" for where, value in ids.items()))
    return Labelled(label, tuple(dict.fromkeys([*((ID, value) for value in ids.values()), *names])))


def _read_json(fields: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        description = json.loads(fields.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"no label: KEY.json cannot be read: {error}") from error
    if not isinstance(description, dict):
        raise SourceError("KEY.json is no object")
    return description


def _number(value: object) -> int | None:
    """A label as a whole number; None for a name, null or anything else."""
    if isinstance(value, str):
        match = _WHOLE_NUMBER.match(value)
        return int(match[1]) if match else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ids_in_names(key: str, description: Mapping[str, Any]) -> dict[str, str]:
    """WordNet ids in the folders and names of a sample, by the place of each."""
    found = {f"the key, part {number}": wnid for number, wnid in enumerate(_WNID_IN_NAME.findall(key), 1)}
    filename = description.get("filename")
    if isinstance(filename, str):
        stem = filename.rpartition("/")[2].partition(".")[0]
        found |= {f"the file name, part {n}": wnid for n, wnid in enumerate(_WNID_IN_NAME.findall(stem), 1)}
    return found


class ClassEvidence:
    """What the samples of a split say about its classes: an example for each different claim.

    Attributes:
        examples: for each (label, kind, value), the first sample that says it, as `FILE: KEY`.
    """

    def __init__(self, examples: dict[tuple[int, str, str], str] | None = None) -> None:
        """Begin with the given examples, or with none."""
        self.examples = examples or {}

    def add(self, labelled: Labelled, where: str) -> None:
        """Add what one sample says."""
        for kind, value in labelled.claims:
            self.examples.setdefault((labelled.label, kind, value), where)

    def __iter__(self) -> Iterator[tuple[int, str, str, str]]:
        """Iterate over (label, kind, value, example)."""
        return ((label, kind, value, where) for (label, kind, value), where in self.examples.items())

    @classmethod
    def merged(cls, parts: list[ClassEvidence]) -> ClassEvidence:
        """The evidence of several shards or splits; the first example of each claim is kept."""
        examples: dict[tuple[int, str, str], str] = {}
        for part in parts:
            examples |= {claim: where for claim, where in part.examples.items() if claim not in examples}
        return cls(examples)
