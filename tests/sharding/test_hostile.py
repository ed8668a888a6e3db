"""Archives, tables and paths that are odd or made to do harm: one sentence for the user, and no hang."""

import os
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding import ManifestError, OutputError, ShardingError, SourceError
from sharding.build import BuildOptions, build
from sharding.index import IndexOptions, index
from sharding.sources import list_split, list_splits
from sharding.tarfiles import header, padding
from tests.sharding import synthetic
from tests.sharding.packing import command, flags, pack
from tests.sharding.synthetic import photograph, train_images, validation_images


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + padding(len(data))


IMAGE = member("k.jpg", photograph(0))
SAMPLE = IMAGE + member("k.cls", b"0")


def negative_size() -> bytes:
    """A header whose size leads back before itself, with a checksum that fits."""
    block = bytearray(header(b"k.jpg", 0))
    block[124:136] = b"-0000002000\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def negative_base_256() -> bytes:
    block = bytearray(header(b"k.jpg", 0))
    block[124:136] = b"\xff" * 4 + struct.pack(">q", -1024)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (member("pax", b"0 path=x\n", tarfile.XHDTYPE) + SAMPLE, "record of length b'0'"),
        (member("pax", b"garbage without length", tarfile.XHDTYPE) + SAMPLE, "record of length b'garbage'"),
        (member("pax", b"99 path=x\n", tarfile.XHDTYPE) + SAMPLE, "record of length b'99'"),
        (member("pax", b"9" * 5000 + b" path=x\n", tarfile.XHDTYPE) + SAMPLE, "record of length b'9999"),
        (member("pax", bytes(2 << 20), tarfile.GNUTYPE_LONGNAME) + SAMPLE, "has 2,097,152 bytes, more than"),
        (SAMPLE + negative_size(), "a size below 0"),
        (SAMPLE + negative_base_256(), "a size below 0"),
        (IMAGE + member("k.json", b"[" * 200_000), "k: no label"),
        (IMAGE + member("k.json", b'{"label": 3.7}'), "k: no label"),
        (IMAGE + member("k.cls", b"99999999999"), "k: label 99999999999 is not from 0 to 999,999"),
        (IMAGE + member("k.cls", b"300000000"), "k: label 300000000 is not from 0"),
        (IMAGE + member("k.cls", b"-1"), "k: label -1 is not from 0"),
    ],
    ids=["pax0", "pax", "pax99", "digits", "long", "octal", "256", "nested", "float", "int64", "many", "negative"],
)
def test_hostile_tars_are_named(content: bytes, fault: str, tmp_path: Path):
    (tmp_path / "x-train-0.tar").write_bytes(content + bytes(1024))
    with pytest.raises(ManifestError, match=f"x-train-0.tar: .*{fault}"):
        index(IndexOptions(shards=str(tmp_path), workers=1))


def test_members_that_are_no_samples_are_passed_over(tmp_path: Path):
    odd = member("._k.jpg", b"of a Mac") + member("README", b"read me") + member("k.json", b'{"class": ["a"]}')
    content = member("._k.jpg", b"of a Mac") + SAMPLE + odd
    (tmp_path / "x-train-0.tar").write_bytes(content + bytes(1024))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    assert (manifest.num_samples, manifest.classes[0].wnid) == (1, "0")


def test_pax_names_are_still_read(tmp_path: Path):
    with tarfile.open(tmp_path / "x-train-0.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for suffix, data in ((".jpg", photograph(0)), (".cls", b"0")):
            synthetic.add_member(archive, "ü" * 120 + suffix, data)
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    assert manifest.num_samples == 1


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path):
    (tmp_path / "a").mkdir()
    with open(tmp_path / "a" / "big.jpg", "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(SourceError, match=r"a/big.jpg has 1,099,511,627,776 bytes; an image may have 268,435,456"):
        list_split(str(tmp_path), "train")
    with open(tmp_path / "x-train-0.tar", "wb") as stream:
        stream.write(header(b"k.jpg", (1 << 28) + 512))
        stream.truncate((1 << 28) + 2048)
    with pytest.raises(ManifestError, match=r"holds k.jpg of 268,435,968 bytes; 268,435,456 are allowed"):
        index(IndexOptions(shards=str(tmp_path), workers=1, decode_check=False))


def test_a_temporary_folder_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = synthetic.write_parquet(tmp_path / "parquet", train_images(1), validation_images(2))
    monkeypatch.setattr("sharding.sources.parquet._SPOOL_IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(OutputError, match=r"could not be written to a temporary file: .*/nowhere.*Set TMPDIR"):
        pack(source, tmp_path / "out")


def test_names_that_differ_in_letters_beyond_ascii_alone(tmp_path: Path):
    (tmp_path / "猫").mkdir()
    for name in ("一.jpg", "二.jpg"):
        (tmp_path / "猫" / name).write_bytes(photograph(0))
    with pytest.raises(SourceError, match=r"key '___': .*一.jpg and .*二.jpg.* in a key every character except A-Z"):
        list_split(str(tmp_path), "train")


def test_a_path_that_is_not_utf8_is_one_line(source: str, tmp_path: Path):
    path = tmp_path / os.fsdecode(b"\xff")
    path.mkdir()
    for flag in ("source", "output", "classes"):
        with pytest.raises(ShardingError, match="is not UTF-8"):
            pack(**{"source": source, "output": tmp_path / "out", flag: str(path)})
    done = command(*flags(path, tmp_path / "out"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "is not UTF-8. Rename it" in done.stderr


def test_an_archive_given_as_the_source(tmp_path: Path, source: str):
    root = synthetic.write_archives(tmp_path / "imagenet", train_images(1), validation_images(2))
    archive = str(root / "ILSVRC2012_img_val.tar")
    assert list_splits(archive) == ["validation"]
    (manifest,) = build(BuildOptions(source=archive, output=str(tmp_path / "out"), workers=1))
    assert (manifest.split, manifest.num_samples) == ("validation", 2)
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(SourceError, match=f"{root}/ILSVRC2012_devkit_t12.tar.gz is missing"):
        list_split(archive, "validation")
    other = root / "imagenet1k-train-0000.tar"
    other.write_bytes(b"")
    with pytest.raises(ShardingError, match="is a file that is none of ImageNet's archives"):
        list_splits(str(other))


def deep_manifest(folder: Path) -> None:
    (folder / "x-train.json").write_text('{"index_sha256": ' + "[" * 200_000)


def list_as_manifest(folder: Path) -> None:
    (folder / "x-train.json").write_text('["index_sha256"]')


@pytest.mark.parametrize("write", [deep_manifest, list_as_manifest])
def test_a_json_that_is_no_manifest_is_named(write: Callable[[Path], None], tmp_path: Path):
    write(tmp_path)
    (tmp_path / "x-train-0.tar").write_bytes(SAMPLE + bytes(1024))
    with pytest.raises(ManifestError, match=r"x-train.json is not a manifest of shards"):
        index(IndexOptions(shards=str(tmp_path), workers=1))
