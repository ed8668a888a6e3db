"""Class folders: what is listed, what is left out with a note, and what is refused."""

from pathlib import Path

import pytest

from sharding import ShardingError, SourceError
from sharding.sources import list_split, list_splits
from tests.sharding import synthetic
from tests.sharding.synthetic import photograph, train_images, validation_images, write_class_folders


def test_class_folders_without_split_folders_are_the_split_that_is_named(tmp_path: Path):
    flat = str(synthetic.write_folders(tmp_path, train_images(1), validation_images(1)) / "train")
    train, validation = list_split(flat, "train"), list_split(flat, "validation")
    assert train.keys.equals(validation.keys)
    assert (train.labels == validation.labels).all()
    with pytest.raises(ShardingError, match="--split train"):
        list_splits(flat)


@pytest.mark.parametrize("given", ["folder", "folder/train"])
@pytest.mark.parametrize("table", ["LOC_synset_mapping.txt", "ILSVRC2012_devkit_t12.tar.gz"])
def test_class_names_come_from_a_mapping_or_a_development_kit_nearby(given: str, table: str, tmp_path: Path):
    root = synthetic.write_folders(tmp_path / "folder", train_images(1)[2:], validation_images())
    if table.endswith(".gz"):
        (root / "LOC_synset_mapping.txt").unlink()
        synthetic.write_devkit(root / table, validation_images())
    listing = list_split(str(tmp_path / given), "train")
    assert {entry.wnid: entry.name for entry in listing.classes} == synthetic.NAMES
    assert listing.labels.tolist() == list(range(2, 10))


def test_a_test_folder_without_classes_is_no_split(tmp_path: Path):
    synthetic.write_folders(tmp_path, train_images(1), validation_images(2))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(photograph(0))
    assert list_splits(str(tmp_path)) == ["train", "validation"]


def test_images_named_by_another_class_than_their_folder_are_refused(tmp_path: Path):
    synthetic.write_folders(tmp_path, train_images(2), validation_images())
    first, second = sorted((tmp_path / "train").iterdir())[:2]
    for path in list(first.iterdir()):
        path.rename(second / path.name)
    with pytest.raises(
        SourceError, match=r"2 images have another WordNet id in their name .* \(class n\d+\) and train/"
    ):
        list_split(str(tmp_path), "train")


def test_a_folder_that_is_not_in_the_class_list_is_named(tmp_path: Path):
    synthetic.write_folders(tmp_path, train_images(1), validation_images())
    (tmp_path / "train" / "n77777777").mkdir()
    (tmp_path / "train" / "n77777777" / "x.JPEG").write_bytes(photograph(0))
    with pytest.raises(ShardingError, match=r"unknown to LOC_synset_mapping.txt: n77777777"):
        list_split(str(tmp_path), "train")


def test_loose_images_and_a_file_that_is_no_class_list_are_named(tmp_path: Path):
    (tmp_path / "1.JPEG").write_bytes(photograph(0))
    with pytest.raises(ShardingError, match="1 images and no class folders"):
        list_split(str(tmp_path), "train")
    with pytest.raises(ShardingError, match="is not a list of classes"):
        list_split(str(tmp_path), "train", classes=str(tmp_path / "1.JPEG"))


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        ({"imagenet/train/a": 2, "imagenet/val/a": 1}, "imagenet/train/a"),
        ({"imagenet/a": 2, "imagenet/b": 2}, "imagenet/a"),
        ({"training/0": 1, "training/1": 1, "testing/0": 1}, "training/0"),
    ],
)
def test_folders_above_the_class_folders_are_refused(classes: dict[str, int], found: str, tmp_path: Path):
    write_class_folders(tmp_path, classes)
    with pytest.raises(SourceError, match=f"folders of folders, such as {found}"):
        list_split(str(tmp_path), "train")


def test_one_level_below_the_class_folders_is_allowed(tmp_path: Path):
    write_class_folders(tmp_path, {"a/images": 2, "b/images": 2})
    assert [entry.wnid for entry in list_split(str(tmp_path), "train").classes] == ["a", "b"]


def test_files_left_out_of_class_folders_are_reported(tmp_path: Path):
    write_class_folders(tmp_path, {"a": 2, ".thumbs": 3, "__background__": 1, "x": 1, "__MACOSX/x": 1})
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "._0.jpg").write_bytes(b"of a Mac")
    listing = list_split(str(tmp_path), "train")
    assert [entry.wnid for entry in listing.classes] == ["__background__", "a", "x"]
    assert len(listing) == 4
    assert [note.partition(" (")[0] for note in listing.notes] == [
        "2 images beside the class folders were left out: they have no class",
        "4 images in hidden or system folders were left out",
        "1 files whose names are not those of images were left out",
    ]


def test_broken_symbolic_links_are_refused(tmp_path: Path):
    write_class_folders(tmp_path, {"a": 1})
    (tmp_path / "b").symlink_to("a")
    assert len(list_split(str(tmp_path), "train")) == 2
    (tmp_path / "a" / "gone.jpg").symlink_to("/nowhere/x.jpg")
    with pytest.raises(SourceError, match=r"1 symbolic links in .* are broken, such as a/gone.jpg"):
        list_split(str(tmp_path), "train")


HIDDEN = (".ipynb_checkpoints", ".AppleDouble", "@eaDir", ".thumbnails", "__MACOSX", "$RECYCLE.BIN", "lost+found")


@pytest.mark.parametrize("below", ["", "cat/", "cat/images/"])
def test_images_in_hidden_and_system_folders_are_left_out_at_any_depth(below: str, tmp_path: Path):
    write_class_folders(tmp_path / "train", {"cat": 0, "cat/images": 3, "dog": 2})
    sound = list_split(str(tmp_path), "train")
    write_class_folders(tmp_path / "train", {f"{below}{name}/normal": 1 for name in HIDDEN})
    (tmp_path / "train" / f"{below}.ipynb_checkpoints" / "gone.jpg").symlink_to("/nowhere/x.jpg")
    listing = list_split(str(tmp_path), "train")
    assert listing.names.equals(sound.names)
    assert listing.keys.equals(sound.keys)
    assert [entry.wnid for entry in listing.classes] == ["cat", "dog"]
    (note,) = listing.notes
    assert note.startswith(f"{len(HIDDEN)} images in hidden or system folders were left out ({below}")


def test_a_test_folder_with_a_hidden_folder_alone_is_no_split(tmp_path: Path):
    synthetic.write_folders(tmp_path, train_images(1), validation_images(2))
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir(parents=True)
    assert list_splits(str(tmp_path)) == ["train", "validation"]
