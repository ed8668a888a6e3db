"""Keys of names that a tar header cannot hold: each image is packed under a key of its own."""

from pathlib import Path

import pytest

from sharding import SourceError, load_index, load_manifest
from sharding.sources import list_split
from tests.sharding.builds import faults_of, pack
from tests.sharding.synthetic import encode, photograph, picture


def write(root: Path, files: list[str]) -> Path:
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(), "PNG") if name.endswith(".png") else photograph(number))
    return root


@pytest.mark.parametrize(
    "files",
    [
        [f"{name}/{number:03d}.jpg" for name in "猫犬鸟鱼" for number in range(2)],
        ["cat/图1.jpg", "cat/照1.jpg", "dog/1.jpg"],
        ["a/b_1.jpg", "a_b/1.jpg"],
        ["cat/1.jpg", "cat/1.png", "dog/1.jpg"],
        [f"{name}/1.jpg" for name in ("C", "C+", "C#", "C-")],
        ["x" * 60 + "/" + "y" * 60 + ".jpg", "x" * 60 + "/" + "y" * 59 + "z.jpg"],
        ["cat/a/1.jpg", "cat/b/1.jpg", "dog/1.jpg"],
    ],
)
def test_names_that_would_have_one_key_are_packed_apart(files: list[str], tmp_path: Path):
    pack(write(tmp_path / "source", files), tmp_path / "shards")
    keys = load_index(str(tmp_path / "shards"), load_manifest(str(tmp_path / "shards"), "train"))["key"].to_pylist()
    assert len(set(keys)) == len(files)
    assert all(key.isascii() and len(key) <= 95 for key in keys)
    assert faults_of(tmp_path / "shards") == []


def test_other_names_keep_their_plain_keys(tmp_path: Path):
    write(tmp_path, ["cat/a b.c.jpg", "cat/é.jpg", "dog/dog_7.jpg", "n01440764/n01440764_1.JPEG"])
    keys = sorted(list_split(str(tmp_path), "train").keys.to_pylist())
    assert keys == ["cat__", "cat_a_b_c", "dog_7", "n01440764_1"]


def test_all_images_that_come_twice_are_listed_at_once(tmp_path: Path):
    stems = [f"n01440764_{number}" for number in range(30)]
    write(tmp_path, [f"n01440764/{sub}{stem}.JPEG" for stem in stems for sub in ("", "again/")])
    with pytest.raises(SourceError, match=r"^30 images have .*(\n  n01440764_\d+: .* and .*){20}\n  and 10 more"):
        list_split(str(tmp_path), "train")
