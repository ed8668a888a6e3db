"""What would lose samples, or change labels, without a word: it is refused, and the words say where."""

import dataclasses
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from sharding import ManifestError, OutputError, SourceError, load_manifest
from sharding.index import IndexOptions, index
from sharding.parts import Part
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
    part = Part.from_bytes(0, (parts / Part.file_name(0)).read_bytes())
    assert part is not None
    # A record that lies: of shard 1, with the samples of shard 0 or with none.
    forged = dataclasses.replace(part, number=1, rows=part.rows if number == 0 else part.rows.slice(0, 0))
    (parts / Part.file_name(1)).write_bytes(forged.to_bytes())
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
            synthetic.add_member(archive, f"{number}.jpg", synthetic.photograph(number, 400, 300))
            synthetic.add_member(archive, f"{number}.cls", b"0")
    return path


def second_member(path: Path, after: int = 0) -> int:
    with tarfile.open(path) as archive:
        return archive.getmembers()[2 * after + 2].offset


@pytest.mark.parametrize("tail", ["content", "zeros"])
def test_zeros_within_an_archive_are_no_end(tail: str, tmp_path: Path):
    tar = _tar_of_two(tmp_path / "x-train-0.tar")
    content = bytearray(tar.read_bytes())
    hole = second_member(tar)
    if tail == "content":
        content[hole : hole + 512] = bytes(512)
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
    tar.write_bytes(content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512 + 512 * blocks))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    assert manifest.num_samples == 2
