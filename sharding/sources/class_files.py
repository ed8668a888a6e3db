"""Read the lists of classes that people have: text with or without tables, CSV, JSON."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import shlex
from collections.abc import Iterable
from typing import Any

from sharding.errors import SourceError
from sharding.manifest import ClassInfo
from sharding.sources.classes import SYNSET_MAPPING, ClassList
from sharding.storage import Folder

_WNID = re.compile(r"^n\d{8}$")
_PLAIN = "lines of ids and names separated by a space"
_LONGEST_LIST = 16 << 20  # bytes
# The first column of a table of classes that has a header.
_HEADER = ("wnid", "id", "class", "class_id", "synset", "synset_id", "label", "index")
_BYTE_ORDERS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_class_list(content: bytes, origin: str) -> ClassList:
    """Parse a list of classes in any of the forms that people have, and note which it was.

    Text has one class a line, in any order: `n01440764 tench`, separated by a space, tab or comma; with a header or
    quotes; `n01440764 449 tench` of map_clsloc.txt, whose numbers are ignored; or ids alone. Labels are then positions
    in the order of the ids. JSON states the labels itself: `{"0": ["n01440764", "tench"]}`, `{"0": "tench"}` or a list.

    Args:
        content: content of the file.
        origin: name of the file, for messages.

    Raises:
        SourceError: the file is none of these, or a class comes twice.
    """
    text = _decode(content, origin)
    if text.lstrip()[:1] in ("{", "["):
        entries, form = _from_json(text, origin), "JSON, whose order gives the labels"
        _refuse_repeated(entries, origin)
        return ClassList(tuple(entries), origin, form)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    rows, form = _rows(lines)
    entries = [ClassInfo(row[0].strip(), (row[1].strip() if len(row) > 1 else "") or row[0].strip()) for row in rows]
    _refuse_repeated(entries, origin)
    whole = tuple(ClassInfo(line, line) for line in sorted(lines)) if form == _PLAIN else ()
    return ClassList(tuple(sorted(entries, key=lambda entry: entry.wnid)), origin, form, whole)


def _decode(content: bytes, origin: str) -> str:
    try:
        if content.startswith(_BYTE_ORDERS):
            return content.decode("utf-16")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f'{origin} is not a list of classes: byte {error.start} is not UTF-8; its lines should be "n01440764 tench"'
        ) from error


def _rows(lines: list[str]) -> tuple[list[list[str]], str]:
    """Split the lines into id and name, and say by what."""
    for separator, form in (("\t", "lines separated by tabs"), (",", "a table separated by commas")):
        if (
            lines
            and all(separator in line for line in lines)
            and not all(_WNID.match(line.split()[0]) for line in lines)
        ):
            rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=separator, skipinitialspace=True))
            return _with_name_second(_without_header(rows)), form
    tabbed = [line.partition("\t") for line in lines]
    if lines and all(_WNID.match(first.strip()) and tab for first, tab, _ in tabbed):
        return [[first, name] for first, _, name in tabbed], "lines separated by tabs"
    if any(line.startswith(('"', "'")) for line in lines):
        return [[parts[0], " ".join(parts[1:])] for parts in map(_quoted, lines)], "lines with quoted ids"
    parts = [line.split(None, 2) for line in lines]
    if parts and all(len(row) == 3 and _WNID.match(row[0]) and row[1].isdecimal() for row in parts):
        return [[row[0], row[2].replace("_", " ")] for row in parts], "map_clsloc.txt, without its numbers"
    return [list(line.partition(" ")[::2]) for line in lines], _PLAIN


def _quoted(line: str) -> list[str]:
    try:
        return shlex.split(line) or [line]
    except ValueError:  # an apostrophe in a name
        return [line.split()[0], *line.split()[1:]]


def _without_header(rows: list[list[str]]) -> list[list[str]]:
    return rows[1:] if rows and rows[0][0].strip().lower() in _HEADER else rows


def _with_name_second(rows: list[list[str]]) -> list[list[str]]:
    """Put the WordNet id first where the table begins with the label: `0,n01440764,tench`."""
    if rows and all(len(row) > 1 and row[0].strip().isdecimal() and _WNID.match(row[1].strip()) for row in rows):
        rows = [row[1:] for row in rows]
    return [[row[0], ", ".join(part.strip() for part in row[1:] if part.strip())] for row in rows]


def _from_json(text: str, origin: str) -> list[ClassInfo]:
    try:
        content = json.loads(text)
        if isinstance(content, dict) and all(str(key).isdecimal() for key in content):
            numbers = sorted(int(key) for key in content)
            if numbers != list(range(len(numbers))):
                raise SourceError(f"{origin}: the labels are not 0 to {len(numbers) - 1}")
            return [_entry(content[str(number)]) for number in numbers]
        if isinstance(content, dict) and all(_WNID.match(key) for key in content):
            named = {key: value if isinstance(value, str) else value[0] for key, value in content.items()}
            return [ClassInfo(wnid, str(named[wnid])) for wnid in sorted(named)]
        if isinstance(content, dict):  # {"tench": 0}
            return [ClassInfo(name, name) for name in sorted(content, key=lambda name: int(content[name]))]
        return [_entry(value) for value in content]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f'{origin} is not a list of classes: as JSON it should be {{"0": ["n01440764", "tench"], …}} or a list '
            f"({error!r})"
        ) from error


def _entry(value: Any) -> ClassInfo:
    """A class from its value in JSON: a name, or an id and a name."""
    if isinstance(value, str):
        return ClassInfo(value, value)
    wnid, *names = [str(part) for part in value]
    return ClassInfo(wnid, ", ".join(names) or wnid)


def _refuse_repeated(entries: Iterable[ClassInfo], origin: str) -> None:
    seen: set[str] = set()
    for number, entry in enumerate(entries, 1):
        if entry.wnid in seen:
            raise SourceError(f"{origin}, entry {number}: class {entry.wnid!r} comes a second time")
        seen.add(entry.wnid)


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
    return read_class_list(folder.read(name), origin)
