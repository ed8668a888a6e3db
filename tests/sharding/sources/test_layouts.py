"""Layouts that people have besides the plain ones: each is packed with the right labels, or refused in one line."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding import SourceError
from sharding.build import BuildOptions, build
from sharding.sources import list_source, list_split, list_splits
from sharding.sources.listing import Listing
from tests.sharding import synthetic
from tests.sharding.synthetic import WNIDS, photograph, train_images, validation_images, write_class_folders

VALIDATION = "ILSVRC/Data/CLS-LOC/val"


def labels_of(listing: Listing) -> dict[str, str]:
    """The class id of each image, by key."""
    wnids = [listing.classes[label].wnid for label in listing.labels]
    return dict(zip(listing.keys.to_pylist(), wnids, strict=True))


def expected_labels(images: list[synthetic.SyntheticImage]) -> dict[str, str]:
    return {image.stem: image.wnid for image in images}


@pytest.mark.parametrize("moved", [1, 3, 6])
def test_kaggles_validation_images_may_lie_in_class_folders(tmp_path: Path, moved: int):
    images = validation_images(6)
    root = synthetic.write_kaggle(tmp_path, train_images(1), images)
    for image in images[:moved]:
        folder = root / VALIDATION / image.wnid
        folder.mkdir(exist_ok=True)
        (root / VALIDATION / f"{image.stem}.JPEG").rename(folder / f"{image.stem}.JPEG")
    assert labels_of(list_split(str(root), "validation")) == expected_labels(images)
    path = root / VALIDATION / images[0].wnid / f"{images[0].stem}.JPEG"
    shutil.copy(path, root / VALIDATION)
    with pytest.raises(SourceError, match=r"holds an image twice: .*. Remove one of them"):
        list_split(str(root), "validation")
    (root / VALIDATION / path.name).unlink()
    other = root / VALIDATION / next(wnid for wnid in WNIDS if wnid != images[0].wnid)
    other.mkdir(exist_ok=True)
    path.rename(other / path.name)
    with pytest.raises(SourceError, match=r"lies in the folder of another class than n\d+, its class in LOC_val"):
        list_split(str(root), "validation")
    (other / path.name).unlink()
    with pytest.raises(SourceError, match=rf"lacks 1 of the 6 images in LOC_val\S+, such as {images[0].stem}"):
        list_split(str(root), "validation")


def write_tiny_imagenet(root: Path) -> Path:
    lines = []
    for image in train_images(2):
        folder = root / "train" / image.wnid / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image.stem}.JPEG").write_bytes(image.data)
        (folder.parent / f"{image.wnid}_boxes.txt").write_text("x")
    (root / "val/images").mkdir(parents=True)
    for number, image in enumerate(validation_images(8)):
        (root / f"val/images/val_{number}.JPEG").write_bytes(image.data)
        lines.append(f"val_{number}.JPEG\t{image.wnid}\t0\t0\t9\t9\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "test/images").mkdir(parents=True)
    (root / "test/images/test_0.JPEG").write_bytes(photograph(0))
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    (root / "words.txt").write_text("".join(f"{wnid}\tname of {wnid}\n" for wnid in ["n00000001", *WNIDS]))
    return root


def test_tiny_imagenet_is_packed_with_its_names_and_without_its_test_images(tmp_path: Path):
    root = write_tiny_imagenet(tmp_path)
    train, validation = list_source(str(root), None)
    assert [entry.name for entry in train.classes] == [f"name of {wnid}" for wnid in WNIDS]
    assert labels_of(train) == expected_labels(train_images(2))
    expected = {f"val_{number}": image.wnid for number, image in enumerate(validation_images(8))}
    assert labels_of(validation) == expected
    assert "the folder test has no class folders" in validation.notes[-1]
    (root / "val/val_annotations.txt").unlink()
    with pytest.raises(SourceError, match=r"holds all its images in images, which hardly is a class. Understood are"):
        list_split(str(root), "validation")


def test_numbered_folders_are_positions_in_a_list(tmp_path: Path):
    """As in ImageNet-V2, whose folders 0 to 999 number ImageNet's classes."""
    write_class_folders(tmp_path / "v2", {str(number): 1 for number in range(10)})
    listing = tmp_path / "list.txt"
    listing.write_text(synthetic.synset_mapping())
    found = list_split(str(tmp_path / "v2"), "validation", classes=str(listing))
    assert labels_of(found) == {f"{number}_0": wnid for number, wnid in enumerate(WNIDS)}


@pytest.mark.parametrize("folders", [("train", "val"), ("train", "test")])
def test_folders_of_both_splits_are_packed_without_flags(tmp_path: Path, folders: tuple[str, str]):
    for folder in folders:
        write_class_folders(tmp_path / folder, {"cat": 2, "dog": 1})
    assert len(list_source(str(tmp_path), None)) == 2


def test_classes_named_like_splits_are_classes_where_they_hold_images(tmp_path: Path):
    write_class_folders(tmp_path, {"train": 2, "bus": 1, "test": 1})
    assert [entry.wnid for entry in list_split(str(tmp_path), "train").classes] == ["bus", "test", "train"]
    with pytest.raises(SourceError, match="name the split: --split train"):
        list_splits(str(tmp_path))
    write_class_folders(tmp_path / "both/train", {"train": 2, "bus": 1})
    assert list_splits(str(tmp_path / "both")) == ["train"]
    assert [entry.wnid for entry in list_split(str(tmp_path / "both"), "train").classes] == ["bus", "train"]


def test_an_unlabelled_split_of_parquet_files_is_left_out_and_named(tmp_path: Path):
    root = synthetic.write_parquet(tmp_path / "source", train_images(1), validation_images())
    table = pa.table({"image": [{"bytes": photograph(0), "path": "ILSVRC2012_test_00000001.JPEG"}], "label": [-1]})
    pq.write_table(table, root / "data/test-00000-of-00001.parquet")
    lines: list[str] = []
    options = BuildOptions(source=str(root), output=str(tmp_path / "shards"), shard_mb=1, workers=1)
    assert [manifest.split for manifest in build(options, log=lines.append)] == ["train", "validation"]
    assert "  the test split has no labels and is left out" in lines
    with pytest.raises(SourceError, match="this file has others, or no labels"):
        list_split(str(root), "test")
