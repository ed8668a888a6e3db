"""Keys of the samples, and what a listing refuses."""

from pathlib import Path

import pytest

from sharding import ManifestError, SourceError
from sharding.index import IndexOptions, index
from sharding.sources import list_split
from sharding.tarfiles import header
from tests.sharding.synthetic import photograph


def test_keys_of_plain_folders_start_with_their_class(tmp_path: Path):
    for digit in ("0", "1"):
        (tmp_path / digit).mkdir()
        (tmp_path / digit / "a.b.png").write_bytes(photograph(int(digit)))
    assert sorted(list_split(str(tmp_path), "train").keys.to_pylist()) == ["0_a_b", "1_a_b"]


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
