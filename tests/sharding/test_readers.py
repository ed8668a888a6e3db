"""WebDataset, timm and the index read what was small_shards."""

import hashlib
import io
import json
from pathlib import Path

import pytest
import webdataset
import xxhash
from PIL import Image

from sharding import (
    load_index,
    load_manifest,
)
from tests.sharding.synthetic import (
    train_images,
    validation_images,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_webdataset_reads_every_sample(small_shards: Path):
    expected = {image.stem: image for image in train_images()}
    manifest = load_manifest(str(small_shards), "train")
    urls = [str(small_shards / shard.name) for shard in manifest.shards]
    seen = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        image = expected[sample["__key__"]]
        assert sample["jpg"] == image.data
        assert int(sample["cls"]) == image.label
        assert json.loads(sample["json"])["class"] == image.wnid
        seen[sample["__key__"]] = True
    assert seen.keys() == expected.keys()


def test_timm_reads_every_sample(small_shards: Path):
    import timm.data

    for split, count in (("train", 60), ("validation", 20)):
        dataset = timm.data.create_dataset("wds/imagenet1k", root=str(small_shards), split=split)
        assert len(dataset) == count
        labels = sorted(target for _, target in dataset)
        expected = train_images() if split == "train" else validation_images()
        assert labels == sorted(image.label for image in expected)


def test_the_index_gives_the_position_and_hash_of_every_image(small_shards: Path):
    expected = {image.stem: image for image in validation_images()}
    manifest = load_manifest(str(small_shards), "validation", name="imagenet1k")
    table = load_index(str(small_shards), manifest)
    assert table.num_rows == manifest.num_samples == len(expected)
    positions = list(zip(table["shard"].to_pylist(), table["offset"].to_pylist(), strict=True))
    assert positions == sorted(positions)
    for row in table.to_pylist():
        image = expected[row["key"]]
        content = (small_shards / manifest.shards[row["shard"]].name).read_bytes()
        data = content[row["offset"] : row["offset"] + row["size"]]
        assert data == image.data
        assert row["label"] == image.label
        assert row["xxh64"] == xxhash.xxh64_intdigest(data)
        assert (row["width"], row["height"]) == Image.open(io.BytesIO(data)).size
    for shard in manifest.shards:
        content = (small_shards / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
