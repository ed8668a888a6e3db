"""The same small ImageNet in every form in which it is held: same keys, same labels, same bytes."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding import ShardingError, load_index
from sharding.build import BuildOptions, build
from sharding.sources import list_split, list_splits
from tests.sharding import synthetic
from tests.sharding.synthetic import WNIDS, add_member, photograph, train_images, validation_images

FORMS = {
    "ilsvrc": synthetic.write_archives,
    "folder": synthetic.write_folders,
    "kaggle": synthetic.write_kaggle,
    "parquet": synthetic.write_parquet,
}


@pytest.fixture(scope="module")
def imagenets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("imagenets")
    return {form: write(root / form, train_images(), validation_images()) for form, write in FORMS.items()}


@pytest.mark.parametrize("form", FORMS)
def test_labels_and_bytes_agree_in_every_form(form: str, imagenets: dict[str, Path], tmp_path: Path):
    source = str(imagenets[form])
    assert list_splits(source) == ["train", "validation"]
    manifests = build(BuildOptions(source=source, output=str(tmp_path), shard_mb=1, workers=1))
    for manifest, images in zip(manifests, (train_images(), validation_images()), strict=True):
        assert list_split(source, manifest.split).source_format == form
        assert [entry.wnid for entry in manifest.classes] == WNIDS
        assert [entry.name for entry in manifest.classes] == [synthetic.NAMES[wnid] for wnid in WNIDS]
        index = load_index(str(tmp_path), manifest)
        contents = [(tmp_path / shard.name).read_bytes() for shard in manifest.shards]
        packed = {
            row["key"]: (row["label"], contents[row["shard"]][row["offset"] : row["offset"] + row["size"]])
            for row in index.to_pylist()
        }
        assert packed == {image.stem: (image.label, image.data) for image in images}


def test_archives_folders_and_kaggle_give_the_same_shards(imagenets: dict[str, Path], tmp_path: Path):
    digests = set()
    for form in ("ilsvrc", "folder", "kaggle"):
        manifests = build(BuildOptions(source=str(imagenets[form]), output=str(tmp_path / form), shard_mb=1, workers=1))
        digests.add(tuple(manifest.digest for manifest in manifests))
    assert len(digests) == 1


def test_flat_class_folders_are_whichever_split_is_asked_for(imagenets: dict[str, Path]):
    flat = str(imagenets["folder"] / "train")
    train, validation = list_split(flat, "train"), list_split(flat, "validation")
    assert train.keys.equals(validation.keys)
    assert (train.labels == validation.labels).all()
    with pytest.raises(ShardingError, match="--split train"):
        list_splits(flat)


@pytest.mark.parametrize("given", ["folder", "folder/train"])
@pytest.mark.parametrize("table", ["LOC_synset_mapping.txt", "ILSVRC2012_devkit_t12.tar.gz"])
def test_class_folders_take_their_names_from_what_lies_with_them(given: str, table: str, tmp_path: Path):
    root = synthetic.write_folders(tmp_path / "folder", train_images(1)[2:], validation_images())
    if table.endswith(".gz"):
        (root / "LOC_synset_mapping.txt").unlink()
        synthetic.write_devkit(root / table, validation_images())
    listing = list_split(str(tmp_path / given), "train")
    assert {entry.wnid: entry.name for entry in listing.classes} == synthetic.NAMES
    assert listing.labels.tolist() == list(range(2, 10))


def test_an_archive_stands_for_its_folder(imagenets: dict[str, Path]):
    archive = imagenets["ilsvrc"] / "ILSVRC2012_img_train.tar"
    assert list_split(str(archive), "train").source_format == "ilsvrc"


def test_a_test_split_without_labels_is_passed_over(tmp_path: Path):
    synthetic.write_folders(tmp_path, train_images(1), validation_images(2))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(photograph(0))
    assert list_splits(str(tmp_path)) == ["train", "validation"]


def test_keys_of_plain_folders_carry_their_class(tmp_path: Path):
    for digit in ("0", "1"):
        (tmp_path / digit).mkdir()
        (tmp_path / digit / "a.b.png").write_bytes(photograph(int(digit)))
    assert sorted(list_split(str(tmp_path), "train").keys.to_pylist()) == ["0_a_b", "1_a_b"]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            add_member(archive, name, data)


def inner_tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members.items():
            add_member(archive, name, data)
    return stream.getvalue()


def truncate_outer(root: Path) -> None:
    archive = root / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:-20_000])


def truncate_at_a_member(root: Path) -> None:
    archive = root / "ILSVRC2012_img_train.tar"
    with tarfile.open(archive) as outer:
        third = outer.getmembers()[3].offset
    archive.write_bytes(archive.read_bytes()[:third])


def truncate_inner(root: Path) -> None:
    inner = inner_tar({f"{WNIDS[0]}_{n}.JPEG": photograph(n) for n in range(3)})
    write_tar(root / "ILSVRC2012_img_train.tar", {f"{WNIDS[0]}.tar": inner[: 2 * 512 + 300]})


def climb_out(root: Path) -> None:
    write_tar(root / "ILSVRC2012_img_train.tar", {"../../evil.JPEG": photograph(0)})


def repeat_key(root: Path) -> None:
    inner = inner_tar({f"{WNIDS[0]}_1.JPEG": photograph(0), f"sub/{WNIDS[0]}_1.jpg": photograph(1)})
    write_tar(root / "ILSVRC2012_img_train.tar", {f"{WNIDS[0]}.tar": inner})


def add_unknown_class(root: Path) -> None:
    write_tar(root / "ILSVRC2012_img_train.tar", {"n99999999.tar": inner_tar({"n99999999_1.JPEG": photograph(0)})})


def empty_tar(root: Path) -> None:
    write_tar(root / "ILSVRC2012_img_train.tar", {})


def no_tar(root: Path) -> None:
    (root / "ILSVRC2012_img_train.tar").write_bytes(b"<html>not found</html>" * 100)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate_outer, r"ILSVRC2012_img_train.tar is truncated: n\d+.tar needs"),
        (truncate_at_a_member, r"ILSVRC2012_img_train.tar is truncated: .* without an end mark, after n\d+.tar"),
        (truncate_inner, rf"ILSVRC2012_img_train.tar: {WNIDS[0]}.tar is truncated: {WNIDS[0]}_0.JPEG needs"),
        (climb_out, r"holds '../../evil.JPEG'; it should hold one nXXXXXXXX.tar per class"),
        (repeat_key, rf"two files would have the key '{WNIDS[0]}_1': .*{WNIDS[0]}_1.JPEG and .*sub/{WNIDS[0]}_1.jpg"),
        (add_unknown_class, "n99999999"),
        (empty_tar, "no images"),
        (no_tar, "ILSVRC2012_img_train.tar is damaged or no tar at byte 0"),
    ],
)
def test_damaged_archive_is_named(spoil: Callable[[Path], None], message: str, tmp_path: Path):
    synthetic.write_archives(tmp_path, train_images(2), validation_images())
    spoil(tmp_path)
    with pytest.raises(ShardingError, match=message):
        build(BuildOptions(source=str(tmp_path), output=str(tmp_path / "out"), split="train", workers=1))
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("remove", "form", "message"),
    [
        ("ILSVRC2012_devkit_t12.tar.gz", "ilsvrc", "ILSVRC2012_devkit_t12.tar.gz is missing"),
        ("LOC_val_solution.csv", "kaggle", "LOC_val_solution.csv is missing"),
        ("LOC_synset_mapping.txt", "kaggle", "LOC_synset_mapping.txt is missing"),
    ],
)
def test_missing_table_is_named(remove: str, form: str, message: str, tmp_path: Path):
    FORMS[form](tmp_path, train_images(1), validation_images())
    (tmp_path / remove).unlink()
    with pytest.raises(ShardingError, match=message):
        list_split(str(tmp_path), "validation")


def test_folder_that_is_no_class_of_the_mapping_is_named(tmp_path: Path):
    synthetic.write_folders(tmp_path, train_images(1), validation_images())
    (tmp_path / "train" / "n77777777").mkdir()
    (tmp_path / "train" / "n77777777" / "x.JPEG").write_bytes(photograph(0))
    with pytest.raises(ShardingError, match=r"unknown to LOC_synset_mapping.txt: n77777777"):
        list_split(str(tmp_path), "train")


def test_names_that_are_not_utf8(tmp_path: Path):
    inner = inner_tar({f"{WNIDS[0]}_1.JPEG": photograph(0)}).replace(b"_1.JPEG", b"_\xff.JPEG")
    header = bytearray(inner[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", {f"{WNIDS[0]}.tar": bytes(header) + inner[512:]})
    assert list_split(str(tmp_path), "train").keys.to_pylist() == [f"{WNIDS[0]}__xff"]
    (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"")
    with pytest.raises(ShardingError, match=r"a name that is not UTF-8, b'.*xff.txt'"):
        list_split(str(tmp_path), "train")


def test_loose_images_and_a_wrong_list_of_classes_are_named(tmp_path: Path):
    (tmp_path / "1.JPEG").write_bytes(photograph(0))
    with pytest.raises(ShardingError, match="1 images and no class folders"):
        list_split(str(tmp_path), "train")
    with pytest.raises(ShardingError, match="is not a list of classes"):
        list_split(str(tmp_path), "train", classes=str(tmp_path / "1.JPEG"))


def test_missing_source_is_named(tmp_path: Path):
    with pytest.raises(ShardingError, match="does not exist"):
        list_split(str(tmp_path / "nowhere"), "train")
    with pytest.raises(ShardingError, match="no images in class folders"):
        list_split(str(tmp_path), "train")
