"""Which members of foreign tars make a sample, and what becomes of the others."""

import json
import tarfile
from pathlib import Path

import pytest

from sharding import ManifestError, load_index, load_manifest
from sharding.index import IndexOptions, index
from tests.sharding.builds import faults_of
from tests.sharding.synthetic import encode, photograph, picture, tar_bytes


def write_tar(folder: Path, members: list[tuple[str, bytes]], name: str = "x-train-0000.tar") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(tar_bytes(members))


def samples(first: int, count: int, extension: str = "jpg") -> list[tuple[str, bytes]]:
    members = []
    for number in range(first, first + count):
        members += [(f"s{number}.{extension}", photograph(number)), (f"s{number}.cls", str(number % 2).encode())]
    return members


def keys(folder: Path, split: str = "train") -> list[str]:
    return load_index(str(folder), load_manifest(str(folder), split))["key"].to_pylist()


def run_index(folder: Path, **options) -> list[str]:
    """The lines that the command prints."""
    lines: list[str] = []
    index(IndexOptions(shards=str(folder), workers=1, **options), log=lines.append)
    return lines


def test_each_member_is_packed_or_counted(tmp_path: Path):
    junk = [("._s0.jpg", b"mac"), ("__MACOSX/._n.jpg", b"mac"), ("README.txt", b"read"), ("sums.md5", b"0"), ("x", b"")]
    write_tar(tmp_path, [*junk[:2], *samples(0, 3), ("s2.txt", b"a caption"), *junk[2:]])
    lines = run_index(tmp_path)
    assert any(
        "5 members that belong to no sample were left out (x-train-0000.tar: ._s0.jpg, " in line for line in lines
    )
    with tarfile.open(tmp_path / "x-train-0000.tar") as tar:
        packed = [member.name for member in tar if member.name.partition(".")[0] in keys(tmp_path)]
        assert len(tar.getmembers()) == len(packed) + load_manifest(str(tmp_path), "train").settings["members_left_out"]
    assert faults_of(tmp_path) == []


@pytest.mark.parametrize("extension", ["input.jpg", "JPEG.jpg", "image.png"])
def test_a_longer_extension_may_name_the_image(tmp_path: Path, extension: str):
    write_tar(tmp_path, samples(0, 2, extension))
    run_index(tmp_path)
    assert keys(tmp_path) == ["s0", "s1"]


def test_of_several_images_the_named_one_is_taken(tmp_path: Path):
    small, large = photograph(1), photograph(2, 100, 90)
    write_tar(tmp_path, [("k.input.jpg", small), ("k.output.jpg", large), ("k.cls", b"0")])
    with pytest.raises(ManifestError, match=r"several images among its members \(input.jpg, output.jpg"):
        run_index(tmp_path)
    run_index(tmp_path, image_member="output.jpg")
    assert load_index(str(tmp_path), load_manifest(str(tmp_path), "train"))["width"].to_pylist() == [100]
    assert faults_of(tmp_path) == []
    write_tar(tmp_path, [("k.jpg", small), ("k.png", encode(picture(), "PNG")), ("k.cls", b"0")])
    with pytest.raises(
        ManifestError, match=r"several images among its members \(jpg, png, cls\): name one of them with -"
    ):
        run_index(tmp_path)
    write_tar(tmp_path, [("k.jpg", small), ("k.seg.png", b"no picture"), ("k.cls", b"0")])
    run_index(tmp_path)
    write_tar(tmp_path, [("k.bmp", encode(picture(), "BMP")), ("k.cls", b"0")])
    with pytest.raises(ManifestError, match=r"no image among its members \(bmp, cls\); --image-member EXT"):
        run_index(tmp_path)


def test_members_of_a_sample_may_lie_apart(tmp_path: Path):
    """As `tar --sort=name` and a locale that ignores punctuation leave them: img1.cls img10.cls img10.jpg img1.jpg."""
    members = samples(0, 4)
    write_tar(tmp_path, sorted(members, key=lambda member: member[0].rpartition(".")[2]))
    assert any("are not neighbours" in line for line in run_index(tmp_path))
    table = load_index(str(tmp_path), load_manifest(str(tmp_path), "train")).to_pylist()
    content = (tmp_path / "x-train-0000.tar").read_bytes()
    found = {row["key"]: (row["label"], content[row["offset"] :][: row["size"]]) for row in table}
    assert found == {f"s{number}": (number % 2, photograph(number)) for number in range(4)}
    assert faults_of(tmp_path) == []


def test_a_key_in_two_tars_is_refused_with_both(tmp_path: Path):
    for number in range(2):
        write_tar(tmp_path, samples(0, 2), f"x-train-{number:04d}.tar")
    with pytest.raises(ManifestError, match=r"2 keys .* 's0' in x-train-0000.tar and x-train-0001.tar"):
        run_index(tmp_path)


@pytest.mark.parametrize(
    ("names", "stem"),
    [
        (["x-train-1.tar", "x-train-2.tar"], "x-train"),
        (["train-00000-of-00002.tar", "train-00001-of-00002.tar"], "mine-train"),
        (["pets-train-00001-of-00002.tar", "pets-train-00002-of-00002.tar"], "pets-train"),
    ],
)
def test_other_ways_to_number_tars_are_understood(tmp_path: Path, names: list[str], stem: str):
    folder = tmp_path / "mine"
    for number, name in enumerate(names):
        write_tar(folder, samples(2 * number, 2), name)
    run_index(folder)
    manifest = load_manifest(str(folder), "train")
    assert (manifest.stem, [shard.name for shard in manifest.shards], manifest.num_samples) == (stem, names, 4)
    assert faults_of(folder) == []
    if "-of-" in names[0]:
        (folder / names[1]).unlink()
        with pytest.raises(ManifestError, match=r"the numbers [12] are missing"):
            run_index(folder)


@pytest.mark.parametrize("name", ["x-train-0000.tar", "x-train-0000.tar.gz"])
def test_compressed_tars_are_named_as_such(tmp_path: Path, name: str):
    with tarfile.open(tmp_path / name, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("s0.cls"))
    with pytest.raises(ManifestError, match=rf"{name}.*(gunzip|no image can be read alone)"):
        run_index(tmp_path)


def test_a_split_called_val_is_named_in_the_flag_that_reads_it(tmp_path: Path):
    for split in ("train", "val"):
        write_tar(tmp_path, samples(0, 2), f"x-{split}-000000.tar")
    assert "  to evaluate trainings on it: --train.data.validation-split val" in run_index(tmp_path)
    with pytest.raises(ManifestError, match=r"x-train, x-val; --train.data.validation-split val"):
        load_manifest(str(tmp_path), "validation")


def test_other_fields_of_a_foreign_description_are_kept(tmp_path: Path):
    write_tar(tmp_path, samples(0, 2))
    theirs = {"name": "train", "num_samples": 9, "filenames": ["x-train-0000.tar"], "shard_lengths": [9], "note": "a"}
    other = {"name": "test", "num_samples": 5, "filenames": ["x-test-00.tar"], "shard_lengths": [5]}
    description = {"splits": {"train": theirs, "test": other}, "dataset_name": "x"}
    (tmp_path / "_info.json").write_text(json.dumps(description))
    run_index(tmp_path)
    expected = {"splits": {"train": theirs | {"num_samples": 2, "shard_lengths": [2]}, "test": other}}
    assert json.loads((tmp_path / "_info.json").read_text()) == expected | {"dataset_name": "x"}
    assert faults_of(tmp_path) == []
