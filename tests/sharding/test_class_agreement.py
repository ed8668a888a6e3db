"""Labels of tars that other software packed: all that the samples of all splits say about a class must agree."""

import json
from pathlib import Path

import pytest

from sharding import Manifest, ManifestError
from sharding.index import IndexOptions, index
from tests.sharding.builds import faults_of
from tests.sharding.synthetic import WNIDS, photograph, tar_bytes

FOUR = WNIDS[:4]
OTHER_ORDER = [2, 0, 3, 1]


def write_split(
    folder: Path, split: str = "train", *, labels=(0, 1, 2, 3), key="{wnid}_{number}", field=None, names=FOUR
) -> Path:
    """A shard with two samples of each of four classes: class `k` has label `labels[k]`.

    `field` is the field of KEY.json that holds `names[k]`.
    """
    members = []
    for number in range(8):
        wnid, label = FOUR[number % 4], labels[number % 4]
        stem = key.format(wnid=wnid, number=number)
        description = {"label": label} | ({field: names[number % 4]} if field else {})
        members += [(f"{stem}.jpg", photograph(number)), (f"{stem}.cls", str(label).encode())]
        members.append((f"{stem}.json", json.dumps(description).encode()))
    folder.mkdir(exist_ok=True)
    (folder / f"x-{split}-0000.tar").write_bytes(tar_bytes(members))
    return folder


def index_all(folder: Path, **options) -> list[Manifest]:
    return index(IndexOptions(shards=str(folder), workers=1, **options))


def ids(manifest: Manifest) -> list[str]:
    return [entry.wnid for entry in manifest.classes]


@pytest.mark.parametrize(
    "sources",
    [
        {"field": "class", "key": "ILSVRC2012_val_{number:08d}"},
        {"field": "wnid", "key": "{number}"},
        {"key": "{wnid}_{number}"},
        {"key": "train/{wnid}/{number}"},
        {"field": "filename", "names": [f"{wnid}_7.JPEG" for wnid in FOUR], "key": "{number}"},
    ],
)
def test_splits_whose_labels_differ_are_refused_with_two_samples(tmp_path: Path, sources):
    write_split(tmp_path, "train", field="class")
    write_split(tmp_path, "validation", labels=OTHER_ORDER, **sources)
    with pytest.raises(ManifestError, match=r"x: .* in x-train-0000.tar: \S+, and .* in x-validation-0000.tar: \S+: "):
        index_all(tmp_path)
    assert not list(tmp_path.glob("*.json"))
    write_split(tmp_path, "validation", **sources)
    assert [ids(manifest) for manifest in index_all(tmp_path)] == [FOUR, FOUR]
    assert faults_of(tmp_path) == []


def test_labels_in_another_order_than_the_ids_keep_their_meaning(tmp_path: Path):
    write_split(tmp_path, labels=OTHER_ORDER)
    (manifest,) = index_all(tmp_path)
    assert ids(manifest) == [FOUR[OTHER_ORDER.index(label)] for label in range(4)]


@pytest.mark.parametrize("name", ["classes.txt", "LOC_synset_mapping.txt"])
def test_a_list_that_contradicts_the_samples_is_refused(tmp_path: Path, name: str):
    write_split(tmp_path, labels=OTHER_ORDER)
    (tmp_path / name).write_text("".join(f"{wnid} thing\n" for wnid in FOUR))
    given = {"classes": str(tmp_path / name)} if name == "classes.txt" else {}
    with pytest.raises(ManifestError, match=r"contradict .*: x-train-0000.tar: n\d+_0: label 2 is n.*; x-train-0000"):
        index_all(tmp_path, **given)


def test_a_split_that_contradicts_a_published_one_is_refused(tmp_path: Path):
    write_split(tmp_path, "train", field="class")
    index_all(tmp_path)
    write_split(tmp_path, "validation", labels=OTHER_ORDER, key="v{number}", field="class")
    with pytest.raises(ManifestError, match=r"contradict x-train.json in 4 classes: x-validation-0000.tar: v0: "):
        index_all(tmp_path, split="validation")


def test_one_label_with_two_ids_and_one_id_with_two_labels_are_refused(tmp_path: Path):
    write_split(tmp_path, labels=(0, 0, 1, 1))
    with pytest.raises(ManifestError, match=r"label 0 is '\w+' in x-train-0000.tar: \w+_0, and '\w+' in .*_1: some"):
        index_all(tmp_path)
    write_split(tmp_path, field="class", names=["cat", "dog", "cat", "ant"], key="k{number}")
    with pytest.raises(ManifestError, match=r"labels 0 and 2 are both 'cat' \(x-train-0000.tar: k0 and .*: k2\)"):
        index_all(tmp_path)


def test_one_sample_that_contradicts_itself_is_a_fault(tmp_path: Path):
    write_split(tmp_path, field="class", names=[FOUR[1], *FOUR[1:]])
    with pytest.raises(ManifestError, match=r"its classes contradict: n\d+ in `class` in KEY.json, n\d+ in the key"):
        index_all(tmp_path)


def test_labels_from_one_are_refused(tmp_path: Path):
    for split in ("train", "validation"):
        write_split(tmp_path, split, labels=(1, 2, 3, 4), field="class")
    with pytest.raises(ManifestError, match=r"no sample has label 0, and its class is unknown. .* --classes. If the l"):
        index_all(tmp_path)
    (tmp_path / "list.txt").write_text("".join(f"{wnid} thing\n" for wnid in ["n00000001", *FOUR]))
    assert len(index_all(tmp_path, classes=str(tmp_path / "list.txt"))[0].classes) == 5


def test_classes_that_are_not_wordnets_may_hold_images_named_by_wordnet_ids(tmp_path: Path):
    write_split(tmp_path, labels=(0, 0, 1, 1), field="class", names=["fish", "fish", "shark", "shark"])
    (manifest,) = index_all(tmp_path)
    assert ids(manifest) == ["fish", "shark"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("tench", None),
        ("0", None),
        (None, None),
        ("1", "KEY.cls says label 0, KEY.json 1"),
        (-1, "KEY.cls says label 0, KEY.json -1"),
    ],
)
def test_a_label_in_json_may_be_a_name_a_text_or_null(tmp_path: Path, label, words):
    description = json.dumps({"label": label}).encode()
    members = [("k.jpg", photograph(0)), ("k.cls", b"0\n"), ("k.json", description)]
    (tmp_path / "x-train-0000.tar").write_bytes(tar_bytes(members))
    if words is None:
        (manifest,) = index_all(tmp_path)
        assert ids(manifest) == ["tench" if label == "tench" else "0"]
    else:
        with pytest.raises(ManifestError, match=words):
            index_all(tmp_path)


def test_verify_finds_labels_that_contradict_the_manifest(tmp_path: Path):
    write_split(tmp_path, key="{number}")
    (manifest,) = index_all(tmp_path)
    assert ids(manifest) == ["0", "1", "2", "3"]
    write_split(tmp_path / "other")
    index_all(tmp_path / "other")
    text = (tmp_path / "other/x-train.json").read_text()
    changed = Manifest.from_json(text, "x-train.json")
    swapped = tuple(changed.classes[label] for label in OTHER_ORDER)
    object.__setattr__(changed, "classes", swapped)
    (tmp_path / "other/x-train.json").write_text(changed.to_json())
    assert len([fault for fault in faults_of(tmp_path / "other") if "in the list" in fault]) == 4
