"""The official archives: damaged ones are refused with the place of the fault."""

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding import ShardingError, SourceError
from sharding.build import BuildOptions, build
from sharding.sources import list_split
from tests.sharding import synthetic
from tests.sharding.synthetic import WNIDS, photograph, tar_bytes, tar_member, train_images, validation_images

ARCHIVE = "ILSVRC2012_img_train.tar"


def truncate_outer(root: Path) -> None:
    archive = root / ARCHIVE
    archive.write_bytes(archive.read_bytes()[:-20_000])


def truncate_at_a_member(root: Path) -> None:
    archive = root / ARCHIVE
    with tarfile.open(archive) as outer:
        third = outer.getmembers()[3].offset
    archive.write_bytes(archive.read_bytes()[:third])


def truncate_inner(root: Path) -> None:
    inner = tar_bytes([(f"{WNIDS[0]}_{n}.JPEG", photograph(n)) for n in range(3)])
    (root / ARCHIVE).write_bytes(tar_bytes([(f"{WNIDS[0]}.tar", inner[: 2 * 512 + 300])]))


def climb_out(root: Path) -> None:
    (root / ARCHIVE).write_bytes(tar_bytes([("../../evil.JPEG", photograph(0))]))


def repeat_key(root: Path) -> None:
    inner = tar_bytes([(f"{WNIDS[0]}_1.JPEG", photograph(0)), (f"sub/{WNIDS[0]}_1.jpg", photograph(1))])
    (root / ARCHIVE).write_bytes(tar_bytes([(f"{WNIDS[0]}.tar", inner)]))


def add_unknown_class(root: Path) -> None:
    (root / ARCHIVE).write_bytes(tar_bytes([("n99999999.tar", tar_bytes([("n99999999_1.JPEG", photograph(0))]))]))


def empty_tar(root: Path) -> None:
    (root / ARCHIVE).write_bytes(tar_bytes([]))


def no_tar(root: Path) -> None:
    (root / ARCHIVE).write_bytes(b"<html>not found</html>" * 100)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate_outer, r"ILSVRC2012_img_train.tar is truncated: n\d+.tar needs"),
        (truncate_at_a_member, r"ILSVRC2012_img_train.tar is truncated: .* without an end mark, after n\d+.tar"),
        (truncate_inner, rf"ILSVRC2012_img_train.tar: {WNIDS[0]}.tar is truncated: {WNIDS[0]}_0.JPEG needs"),
        (climb_out, r"holds '../../evil.JPEG'; it should hold one nXXXXXXXX.tar per class"),
        (repeat_key, rf"1 images have the name .*\n  {WNIDS[0]}_1: .*{WNIDS[0]}_1.JPEG and .*sub/{WNIDS[0]}_1.jpg"),
        (add_unknown_class, "n99999999"),
        (empty_tar, "no images"),
        (no_tar, "ILSVRC2012_img_train.tar is a web page"),
    ],
)
def test_a_damaged_archive_is_named(spoil: Callable[[Path], None], message: str, tmp_path: Path):
    synthetic.write_archives(tmp_path, train_images(2), validation_images())
    spoil(tmp_path)
    with pytest.raises(ShardingError, match=message):
        build(BuildOptions(source=str(tmp_path), output=str(tmp_path / "out"), split="train", workers=1))
    assert not list(tmp_path.glob("out/*"))


def test_zeros_in_place_of_content_are_not_the_end_of_the_archive(tmp_path: Path):
    synthetic.write_archives(tmp_path, train_images(2), validation_images(2))
    archive = tmp_path / ARCHIVE
    with tarfile.open(archive) as outer:
        third = outer.getmembers()[2]
    content = bytearray(archive.read_bytes())
    content[third.offset : third.offset_data] = bytes(512)
    archive.write_bytes(content)
    with pytest.raises(SourceError, match=r"ILSVRC2012_img_train.tar is truncated: at byte .* zeros"):
        list_split(str(tmp_path), "train")


def test_names_that_are_not_utf8_are_escaped_in_archives_and_refused_in_folders(tmp_path: Path):
    inner = tar_bytes([(f"{WNIDS[0]}_1.JPEG", photograph(0))]).replace(b"_1.JPEG", b"_\xff.JPEG")
    header = bytearray(inner[:512])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / ARCHIVE).write_bytes(tar_bytes([(f"{WNIDS[0]}.tar", bytes(header) + inner[512:])]))
    assert list_split(str(tmp_path), "train").keys.to_pylist() == [f"{WNIDS[0]}__xff"]
    (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"")
    with pytest.raises(ShardingError, match=r"a name that is not UTF-8, b'.*xff.txt'"):
        list_split(str(tmp_path), "train")


def test_hard_links_in_class_archives_are_images(tmp_path: Path):
    """GNU tar writes the second name of a file as a hard link, without its bytes."""
    files = tmp_path / "files"
    files.mkdir()
    for number in range(3):
        (files / f"{WNIDS[0]}_{number}.JPEG").write_bytes(photograph(number))
    os.link(files / f"{WNIDS[0]}_0.JPEG", files / f"{WNIDS[0]}_9.JPEG")
    subprocess.run(["tar", "--sort=name", "-cf", str(tmp_path / "inner"), "."], cwd=files, check=True)
    inner = (tmp_path / "inner").read_bytes()
    (tmp_path / ARCHIVE).write_bytes(tar_bytes([(f"{WNIDS[0]}.tar", inner)]))
    with tarfile.open(tmp_path / "inner") as archive:
        names = [f"{WNIDS[0]}.tar/{member.name}" for member in archive if not member.isdir()]
    listing = list_split(str(tmp_path), "train")
    assert listing.names.to_pylist() == names
    offsets, sizes = listing.offsets.tolist(), listing.sizes.tolist()
    assert (offsets[3], sizes[3]) == (offsets[0], sizes[0])
    build(BuildOptions(source=str(tmp_path), output=str(tmp_path / "shards"), split="train", workers=1))


def test_symbolic_links_in_class_archives_are_refused(tmp_path: Path):
    link = tar_member(f"{WNIDS[0]}_1.JPEG", b"", tarfile.SYMTYPE)
    inner = tar_member(f"{WNIDS[0]}_0.JPEG", photograph(0)) + link + bytes(1024)
    (tmp_path / ARCHIVE).write_bytes(tar_bytes([(f"{WNIDS[0]}.tar", inner)]))
    with pytest.raises(SourceError, match=rf"{WNIDS[0]}_1.JPEG is a symbolic link"):
        list_split(str(tmp_path), "train")
