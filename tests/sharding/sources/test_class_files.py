"""The lists of classes that people have: each is understood, and the build says how."""

import json
from pathlib import Path

import pytest

from sharding import SourceError
from sharding.sources import list_split
from sharding.sources.class_files import read_class_list
from tests.sharding.synthetic import photograph, write_class_folders

IDS = ["n01440764", "n01443537", "n01484850"]
NAMES = ["tench", "goldfish, Carassius auratus", "great white shark"]
PAIRS = list(zip(IDS, NAMES, strict=True))


def lines(separator: str, end: str = "\n") -> str:
    return "".join(f"{wnid}{separator}{name}{end}" for wnid, name in reversed(PAIRS))


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (lines(" "), "lines of ids and names"),
        (lines("\t"), "lines separated by tabs"),
        (lines(" ", "\r\n"), "lines of ids and names"),
        ("﻿" + lines(" "), "lines of ids and names"),
        ("".join(f'{wnid},"{name}"\n' for wnid, name in PAIRS), "a table separated by commas"),
        ("wnid,name\n" + "".join(f'{wnid},"{name}"\n' for wnid, name in PAIRS), "a table separated by commas"),
        ("index\twnid\tname\n" + "".join(f"{k}\t{w}\t{n}\n" for k, (w, n) in enumerate(PAIRS)), "separated by tabs"),
        ("".join(f"{w} {9 - k} {n.replace(' ', '_')}\n" for k, (w, n) in enumerate(PAIRS)), "map_clsloc.txt"),
        (json.dumps({str(k): pair for k, pair in enumerate(PAIRS)}), "JSON"),
        (json.dumps(PAIRS), "JSON"),
        (json.dumps(dict(PAIRS)), "JSON"),
    ],
)
def test_each_form_gives_the_same_classes(content: str, form: str):
    found = read_class_list(content.encode(), "list")
    assert [(entry.wnid, entry.name) for entry in found.classes] == PAIRS
    assert form in found.form


def test_ids_alone_utf16_and_names_by_label_are_read():
    assert [entry.wnid for entry in read_class_list("\n".join(IDS).encode(), "list").classes] == IDS
    assert [entry.name for entry in read_class_list(lines(" ").encode("utf-16"), "list").classes] == NAMES
    names = read_class_list(json.dumps({"0": "zebra", "1": "ant"}).encode(), "list")
    assert [entry.wnid for entry in names.classes] == ["zebra", "ant"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"n01440764 caf\xe9\n", "byte 13 is not UTF-8"),
        (lines(" ").encode() * 2, "class 'n01484850' comes a second time"),
        (b'{"0": "a", "2": "b"}', "the labels are not 0 to 1"),
        (b'{"0": ', "is not a list of classes: as JSON"),
    ],
)
def test_what_is_no_list_is_named(content: bytes, words: str):
    with pytest.raises(SourceError, match=f"list.*{words}"):
        read_class_list(content, "list")


@pytest.mark.parametrize("text", ['"golden retriever" Golden\n"tabby cat" Tabby\n', "golden retriever\ntabby cat\n"])
def test_class_folders_with_spaces_are_found(tmp_path: Path, text: str):
    write_class_folders(tmp_path / "source", {"golden retriever": 1, "tabby cat": 1})
    (tmp_path / "list.txt").write_text(text)
    listing = list_split(str(tmp_path / "source"), "train", classes=str(tmp_path / "list.txt"))
    assert [entry.wnid for entry in listing.classes] == ["golden retriever", "tabby cat"]
    assert "2 classes from " in listing.notes[-1]
    assert ", read as " in listing.notes[-1]


def test_one_of_several_formats_side_by_side_is_packed(tmp_path: Path):
    for name in ("1.jpg", "1.png", "2.jpg", "2.png"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(photograph(0))
    assert list_split(str(tmp_path), "train", image_member="jpg").keys.to_pylist() == ["cat_1", "cat_2"]
