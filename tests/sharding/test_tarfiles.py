"""Damaged and hostile tar archives are refused with the place of the fault, and do not hang."""

import io
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from sharding import ManifestError, load_index
from sharding.index import IndexOptions, index
from sharding.tarfiles import header
from tests.sharding.builds import faults_of
from tests.sharding.synthetic import photograph, tar_bytes, tar_member, write_tar_of_two, write_webdataset

IMAGE = tar_member("k.jpg", photograph(0))

SAMPLE = IMAGE + tar_member("k.cls", b"0")


def negative_size() -> bytes:
    """A header with a negative octal size and a matching checksum."""
    block = bytearray(header(b"k.jpg", 0))
    block[124:136] = b"-0000002000\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def negative_base_256() -> bytes:
    """A header with a negative base-256 size and a matching checksum."""
    block = bytearray(header(b"k.jpg", 0))
    block[124:136] = b"\xff" * 4 + struct.pack(">q", -1024)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (tar_member("pax", b"0 path=x\n", tarfile.XHDTYPE) + SAMPLE, "record of length b'0'"),
        (tar_member("pax", b"garbage without length", tarfile.XHDTYPE) + SAMPLE, "record of length b'garbage'"),
        (tar_member("pax", b"99 path=x\n", tarfile.XHDTYPE) + SAMPLE, "record of length b'99'"),
        (tar_member("pax", b"9" * 5000 + b" path=x\n", tarfile.XHDTYPE) + SAMPLE, "record of length b'9999"),
        (tar_member("pax", bytes(2 << 20), tarfile.GNUTYPE_LONGNAME) + SAMPLE, "has 2,097,152 bytes, more than"),
        (SAMPLE + negative_size(), "a size below 0"),
        (SAMPLE + negative_base_256(), "a size below 0"),
        (IMAGE + tar_member("k.json", b"[" * 200_000), "k: no label"),
        (IMAGE + tar_member("k.json", b'{"label": 3.7}'), "k: no label"),
        (IMAGE + tar_member("k.cls", b"99999999999"), "k: label 99999999999 is not from 0 to 999,999"),
        (IMAGE + tar_member("k.cls", b"300000000"), "k: label 300000000 is not from 0"),
        (IMAGE + tar_member("k.cls", b"-1"), "k: label -1 is not from 0"),
    ],
    ids=["pax0", "pax", "pax99", "digits", "long", "octal", "256", "nested", "float", "int64", "many", "negative"],
)
def test_hostile_tars_are_refused_with_the_fault(content: bytes, fault: str, tmp_path: Path):
    (tmp_path / "x-train-0.tar").write_bytes(content + bytes(1024))
    with pytest.raises(ManifestError, match=f"x-train-0.tar: .*{fault}"):
        index(IndexOptions(shards=str(tmp_path), workers=1))


def test_long_pax_names_are_read(tmp_path: Path):
    members = [("ü" * 120 + ".jpg", photograph(0)), ("ü" * 120 + ".cls", b"0")]
    (tmp_path / "x-train-0.tar").write_bytes(tar_bytes(members, tarfile.PAX_FORMAT))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    assert manifest.num_samples == 1


def test_a_header_with_a_wrong_checksum_is_named(tmp_path: Path):
    write_webdataset(tmp_path, ["x-train-0.tar"])
    tar = tmp_path / "x-train-0.tar"
    with tarfile.open(tar) as archive:
        header = [member for member in archive if member.name.endswith(".jpg")][1].offset_data - 512
    content = bytearray(tar.read_bytes())
    content[header + 1] = ord("x")
    tar.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"x-train-0.tar: is damaged or no tar at byte {header:,} \(bad"):
        index(IndexOptions(shards=str(tmp_path), workers=1))


@pytest.mark.parametrize("tail", ["content", "few zeros", "zeros"])
def test_zeros_in_place_of_content_are_not_the_end_of_an_archive(tail: str, tmp_path: Path):
    tar = write_tar_of_two(tmp_path / "x-train-0.tar")
    content = bytearray(tar.read_bytes())
    with tarfile.open(tar) as archive:
        hole = archive.getmembers()[2].offset
    if tail == "content":
        content[hole : hole + 512] = bytes(512)
    elif tail == "few zeros":
        content[hole:] = bytes(len(content) - hole)
        assert len(content) - hole < 70_000
    else:
        content[hole:] = bytes(2 << 20)  # as in a file whose length was set before its download
    tar.write_bytes(content)
    with pytest.raises(
        ManifestError, match=rf"x-train-0.tar: is truncated: at byte {hole:,}, after 0.cls, it has zeros"
    ):
        index(IndexOptions(shards=str(tmp_path), workers=1))


@pytest.mark.parametrize("blocks", [1, 2, 20, 2048])
def test_archives_padded_to_a_record_are_complete(blocks: int, tmp_path: Path):
    tar = write_tar_of_two(tmp_path / "x-train-0.tar")
    content = tar.read_bytes()
    unpadded = content.rstrip(b"\0") + bytes(512)
    tar.write_bytes(unpadded + bytes(-len(unpadded) % (512 * blocks)))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    assert manifest.num_samples == 2


def test_a_name_that_climbs_out_of_the_folder_is_never_written_to(tmp_path: Path):
    members = [("../../climb.jpg", photograph(0)), ("../../climb.cls", b"0")]
    (tmp_path / "x-train-0.tar").write_bytes(tar_bytes(members))
    index(IndexOptions(shards=str(tmp_path), workers=1))
    assert faults_of(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "_info.json",
        "x-train-0.tar",
        "x-train.json",
        "x-train.parquet",
    ]
    assert not list(tmp_path.parent.parent.glob("climb*"))


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("form", "stem"),
    [
        (tarfile.USTAR_FORMAT, "a"),
        (tarfile.GNU_FORMAT, "a" * 90 + "/" + "b" * 60),
        (tarfile.PAX_FORMAT, "a" * 90 + "/" + "b" * 60),
    ],
    ids=["ustar", "gnu", "pax"],
)
def test_hard_links_and_contiguous_files_are_samples(form: int, stem: str, tmp_path: Path):
    with tarfile.open(tmp_path / "x-train-0.tar", "w", format=form) as archive:
        add(archive, f"{stem}.jpg", photograph(0))
        add(archive, f"{stem}.cls", b"0")
        add(archive, "b.jpg", photograph(1), tarfile.CONTTYPE)
        add(archive, "b.cls", kind=tarfile.LNKTYPE, link=f"./{stem}.cls" if stem == "a" else f"{stem}.cls")
        add(archive, "folder", kind=tarfile.DIRTYPE)
        add(archive, "c.jpg", kind=tarfile.LNKTYPE, link=f"{stem}.jpg")
        add(archive, "c.cls", b"1")
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    rows = load_index(str(tmp_path), manifest).to_pylist()
    assert [(row["key"], row["label"]) for row in rows] == [(stem, 0), ("b", 0), ("c", 1)]
    content = (tmp_path / "x-train-0.tar").read_bytes()
    for row, seed in zip(rows, (0, 1, 0), strict=True):
        assert content[row["offset"] :][: row["size"]] == photograph(seed)
    assert faults_of(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "link", "reason"),
    [
        (tarfile.LNKTYPE, "gone.jpg", "k.jpg is a hard link to 'gone.jpg', which is not before it"),
        (tarfile.SYMTYPE, "a.jpg", "k.jpg is a symbolic link"),
        (tarfile.FIFOTYPE, "", "k.jpg is a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "", "k.jpg is a sparse file"),
        (b"M", "", "k.jpg is of the unknown type b'M'"),
    ],
    ids=["hard", "symbolic", "pipe", "sparse", "unknown"],
)
def test_members_that_are_no_plain_files_are_named_and_refused(kind: bytes, link: str, reason: str, tmp_path: Path):
    with tarfile.open(tmp_path / "x-train-0.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        add(archive, "a.jpg", photograph(0))
        add(archive, "a.cls", b"0")
        add(archive, "k.jpg", kind=kind, link=link)
        add(archive, "k.cls", b"0")
    for on_bad in ("stop", "skip"):
        with pytest.raises(ManifestError, match=reason):
            index(IndexOptions(shards=str(tmp_path), workers=1, on_bad=on_bad))


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_files_of_gnu_tar_are_refused(form: str, tmp_path: Path):
    with open(tmp_path / "k.jpg", "wb") as stream:
        stream.write(photograph(0))
        stream.truncate(4 << 20)
    (tmp_path / "k.cls").write_bytes(b"0")
    command = ["tar", "--sparse", f"--format={form}", "-cf", "x-train-0.tar", "k.jpg", "k.cls"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with pytest.raises(ManifestError, match=r"k.jpg is a sparse file"):
        index(IndexOptions(shards=str(tmp_path), workers=1))


def test_the_pax_size_of_a_member_counts(tmp_path: Path):
    """A size of 8 GiB or more is in the pax header alone."""
    data = photograph(0)
    record = f" size={len(data)}\n".encode()
    length = len(record) + 2 if len(record) + 2 < 100 else len(record) + 3
    body = bytearray(tar_member("k.jpg", data))
    body[:512] = tar_member("k.jpg", b"")
    content = tar_member("pax", str(length).encode() + record, tarfile.XHDTYPE) + body + tar_member("k.cls", b"0")
    (tmp_path / "x-train-0.tar").write_bytes(content + bytes(1024))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    assert load_index(str(tmp_path), manifest)["size"].to_pylist() == [len(data)]
