"""What would lose samples, or change labels, without a word: it is refused, and the words say where."""

import dataclasses
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from sharding import ManifestError, OutputError, SourceError, load_index, load_manifest
from sharding.build import BuildOptions, build
from sharding.index import IndexOptions, index
from sharding.shard_record import ShardRecord
from sharding.sources import list_split
from tests.sharding import synthetic
from tests.sharding.packing import pack
from tests.sharding.synthetic import WNIDS, SyntheticImage, train_images, validation_images

PARTS = ".imagenet1k-train.parts"


def large_images(count: int) -> list[SyntheticImage]:
    """Noise of some 150 kB each, so that few images are several shards."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 360, 360, 3), dtype=np.uint8)
    return [
        SyntheticImage(WNIDS[n % 10], f"{WNIDS[n % 10]}_{n}", simplejpeg.encode_jpeg(noise[n], quality=90))
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def groups_of_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parquet")
    return synthetic.write_parquet(root / "2", large_images(24), validation_images(2), row_group_size=2)


def test_the_same_images_in_other_row_groups_are_another_plan(groups_of_2: Path, tmp_path: Path):
    groups_of_6 = synthetic.write_parquet(tmp_path / "6", large_images(24), validation_images(2), row_group_size=6)
    output = tmp_path / "out"
    assert not pack(groups_of_2, output, task_index=0, task_count=2)
    with pytest.raises(OutputError, match=r"belongs to other settings .*plan_sha256"):
        pack(groups_of_6, output, task_index=1, task_count=2)
    (manifest,) = pack(groups_of_2, output, task_index=1, task_count=2)
    assert manifest.num_samples == 24


def test_settings_of_other_sources_are_what_they_were(source: str, tmp_path: Path):
    """Shards packed by an earlier version are still recognised."""
    (manifest,) = pack(source, tmp_path)
    assert manifest.settings.keys() == {
        *("samples_listed", "whole_imagenet", "listing_sha256", "shard_mb", "seed"),
        *("shorter_side", "quality", "decode_check"),
    }


@pytest.mark.parametrize(("number", "fault"), [(0, "comes more than once"), (None, "left out of 24 listed")])
def test_only_what_was_listed_is_published(number: int | None, fault: str, groups_of_2: Path, tmp_path: Path):
    pack(groups_of_2, tmp_path, task_index=0, task_count=2)
    parts = tmp_path / PARTS
    part = ShardRecord.from_bytes(0, (parts / ShardRecord.file_name(0)).read_bytes())
    assert part is not None
    # A record that lies: of shard 1, with the samples of shard 0 or with none.
    forged = dataclasses.replace(part, number=1, rows=part.rows if number == 0 else part.rows.slice(0, 0))
    (parts / ShardRecord.file_name(1)).write_bytes(forged.to_bytes())
    with pytest.raises(OutputError, match=f"do not hold what was listed: .*{fault}"):
        pack(groups_of_2, tmp_path, task_index=1, task_count=2)
    assert not (tmp_path / "imagenet1k-train.json").exists()


def test_an_unfinished_build_is_not_described_as_whole(source: str, tmp_path: Path):
    pack(source, tmp_path, task_index=0, task_count=2)
    for name in sorted(path.name for path in tmp_path.glob("*.tar"))[1:]:
        (tmp_path / name).unlink()  # no gap between the numbers
    for call in (
        lambda: index(IndexOptions(shards=str(tmp_path), workers=1)),
        lambda: load_manifest(str(tmp_path), "train"),
    ):
        with pytest.raises(ManifestError, match=r"unfinished build of imagenet1k-train.*sharding.build") as caught:
            call()
        assert "sharding.index" not in str(caught.value)
    assert not (tmp_path / "imagenet1k-train.json").exists()


def test_two_tars_of_one_number_are_refused(tmp_path: Path):
    for name in ("x-train-0.tar", "x-train-0000.tar"):
        shutil.copy(_tar_of_two(tmp_path / "aside"), tmp_path / name)
    with pytest.raises(ManifestError, match=r"x-train-0.tar and x-train-0000.tar have the same number"):
        index(IndexOptions(shards=str(tmp_path), workers=1))


def _tar_of_two(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for number in range(2):
            synthetic.add_member(archive, f"{number}.jpg", synthetic.photograph(number, 800, 800))
            synthetic.add_member(archive, f"{number}.cls", b"0")
    return path


def second_member(path: Path, after: int = 0) -> int:
    with tarfile.open(path) as archive:
        return archive.getmembers()[2 * after + 2].offset


@pytest.mark.parametrize("tail", ["content", "few zeros", "zeros"])
def test_zeros_within_an_archive_are_no_end(tail: str, tmp_path: Path):
    tar = _tar_of_two(tmp_path / "x-train-0.tar")
    content = bytearray(tar.read_bytes())
    hole = second_member(tar)
    if tail == "content":
        content[hole : hole + 512] = bytes(512)
    elif tail == "few zeros":
        content[hole:] = bytes(len(content) - hole)
        assert len(content) - hole < 70_000
    else:
        content[hole:] = bytes(2 << 20)  # as of a file that was given its length before it was fetched
    tar.write_bytes(content)
    with pytest.raises(
        ManifestError, match=rf"x-train-0.tar: is truncated: at byte {hole:,}, after 0.cls, it has zeros"
    ):
        index(IndexOptions(shards=str(tmp_path), workers=1))


def test_zeros_within_imagenets_archive_are_no_end(tmp_path: Path):
    synthetic.write_archives(tmp_path, train_images(2), validation_images(2))
    archive = tmp_path / "ILSVRC2012_img_train.tar"
    with tarfile.open(archive) as outer:
        third = outer.getmembers()[2]
    content = bytearray(archive.read_bytes())
    content[third.offset : third.offset_data] = bytes(512)
    archive.write_bytes(content)
    with pytest.raises(SourceError, match=r"ILSVRC2012_img_train.tar is truncated: at byte .* zeros"):
        list_split(str(tmp_path), "train")


@pytest.mark.parametrize("blocks", [1, 2, 20, 2048])
def test_archives_filled_up_to_a_record_are_whole(blocks: int, tmp_path: Path):
    tar = _tar_of_two(tmp_path / "x-train-0.tar")
    content = tar.read_bytes()
    filled = content.rstrip(b"\0") + bytes(512)
    tar.write_bytes(filled + bytes(-len(filled) % (512 * blocks)))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    assert manifest.num_samples == 2


def class_folders(root: Path, classes: dict[str, int]) -> Path:
    """Folders of so many images each."""
    for name, count in classes.items():
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(synthetic.photograph(len(str(folder)) + number))
    return root


def labels_of(output: Path, split: str) -> dict[str, int]:
    table = load_index(str(output), load_manifest(str(output), split))
    return dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_splits_agree_on_labels_before_either_is_published(tmp_path: Path):
    root = class_folders(tmp_path / "source", {"train/a": 2, "train/b": 2, "train/c": 2, "val/b": 2, "val/c": 2})
    for form in ("tasks", "validation first"):
        output = tmp_path / form
        if form == "tasks":  # the first ends its share of train, which is not published yet, and goes on to validation
            assert not pack(root, output, split=None, task_index=1, task_count=2)
            assert len(pack(root, output, split=None, task_index=0, task_count=2)) == 2
        else:
            pack(root, output, split="validation")
            pack(root, output, split="train")
        assert labels_of(output, "validation") == {"b_0": 1, "b_1": 1, "c_0": 2, "c_1": 2}
        assert load_manifest(str(output), "train").classes == load_manifest(str(output), "validation").classes
    class_folders(root / "val", {"d": 1})
    with pytest.raises(SourceError, match=r"validation split has 1 classes that the train split does not have \(d\)"):
        pack(root, tmp_path / "out", split=None)
    assert not (tmp_path / "out").exists()


def test_a_split_published_meanwhile_with_other_labels_is_not_joined(tmp_path: Path):
    train = class_folders(tmp_path / "one", {"a": 2, "b": 2, "c": 2})
    validation = class_folders(tmp_path / "two", {"b": 1, "c": 1})
    output = tmp_path / "out"

    def meanwhile(line: str) -> None:
        if line.startswith("train:"):  # train has been listed, and has agreed with what is there
            pack(validation, output, split="validation")

    options = BuildOptions(source=str(train), output=str(output), split="train", shard_mb=1, workers=1)
    with pytest.raises(OutputError, match=r"validation was published .* meanwhile with 2 classes.* one source"):
        build(options, log=meanwhile)
    assert not (output / "imagenet1k-train.json").exists()


def test_other_classes_of_the_same_images_are_other_settings(tmp_path: Path):
    """The JSON beside each image names its class."""
    root = class_folders(tmp_path / "source", {"a": 1})
    (root / "a" / "0.jpg").rename(root / "a" / f"{WNIDS[0]}_1.JPEG")
    pack(root, tmp_path / "out")
    (root / "a").rename(root / "b")
    with pytest.raises(OutputError, match="classes_sha256"):
        pack(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        ({"imagenet/train/a": 2, "imagenet/val/a": 1}, "imagenet/train/a"),
        ({"imagenet/a": 2, "imagenet/b": 2}, "imagenet/a"),
        ({"training/0": 1, "training/1": 1, "testing/0": 1}, "training/0"),
    ],
)
def test_a_folder_above_that_of_the_classes_is_refused(classes: dict[str, int], found: str, tmp_path: Path):
    class_folders(tmp_path, classes)
    with pytest.raises(SourceError, match=f"folders of folders, such as {found}"):
        list_split(str(tmp_path), "train")


def test_one_level_below_the_classes_is_fine(tmp_path: Path):
    class_folders(tmp_path, {"a/images": 2, "b/images": 2})
    assert [entry.wnid for entry in list_split(str(tmp_path), "train").classes] == ["a", "b"]


def test_what_is_left_out_of_class_folders_is_said(tmp_path: Path):
    class_folders(tmp_path, {"a": 2, ".thumbs": 3, "__background__": 1, "x": 1, "__MACOSX/x": 1})
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "._0.jpg").write_bytes(b"of a Mac")
    listing = list_split(str(tmp_path), "train")
    assert [entry.wnid for entry in listing.classes] == ["__background__", "a", "x"]
    assert len(listing) == 4
    assert [note.partition(" (")[0] for note in listing.notes] == [
        "2 images beside the class folders were left out: they have no class",
        "4 images in hidden folders were left out",
        "1 files whose names are not those of images were left out",
    ]


def test_links_to_nothing_are_refused(tmp_path: Path):
    class_folders(tmp_path, {"a": 1})
    (tmp_path / "b").symlink_to("a")
    assert len(list_split(str(tmp_path), "train")) == 2
    (tmp_path / "a" / "gone.jpg").symlink_to("/nowhere/x.jpg")
    with pytest.raises(SourceError, match=r"1 symbolic links in .* are broken, such as a/gone.jpg"):
        list_split(str(tmp_path), "train")


def test_a_parquet_file_that_is_missing_is_named(tmp_path: Path):
    synthetic.write_parquet(tmp_path, train_images(1), validation_images(4))
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    assert len(list_split(str(tmp_path), "validation")) == 4
    with pytest.raises(SourceError, match=r"1 of the 2 files .* the first is data/train-00001-of-00002.parquet"):
        list_split(str(tmp_path), "train")


def test_neighbours_of_one_key_are_two_samples(source: str, tmp_path: Path):
    """WebDataset's own writer puts them there, and its reader takes them for one."""
    with tarfile.open(tmp_path / "x-train-0.tar", "w") as archive:
        for key, label in (("k", 0), ("k", 1), ("m", 1)):
            synthetic.add_member(archive, f"{key}.jpg", synthetic.photograph(label))
            synthetic.add_member(archive, f"{key}.cls", str(label).encode())
    for on_bad in ("stop", "skip"):
        with pytest.raises(ManifestError, match=r"x-train-0.tar: the key 'k' comes more than once"):
            index(IndexOptions(shards=str(tmp_path), workers=1, on_bad=on_bad))


def test_a_manifest_under_another_name_is_refused(source: str, tmp_path: Path):
    pack(source, tmp_path)
    for name in ("imagenet1k-copy.json", "other-train.json"):
        shutil.copy(tmp_path / "imagenet1k-train.json", tmp_path / name)
        with pytest.raises(ManifestError, match=rf"{name} is the manifest of imagenet1k-train: its name must be"):
            load_manifest(str(tmp_path), "train")
        with pytest.raises(ManifestError, match="its name must be"):
            load_manifest(str(tmp_path), "train", name="other")
        (tmp_path / name).unlink()
