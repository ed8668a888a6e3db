"""What is packed is read by the readers people already have."""

import hashlib
import io
import json
from pathlib import Path

import pytest
import webdataset
import xxhash
from PIL import Image

from sharding import load_index, load_manifest
from sharding.build import BuildOptions, build
from tests.sharding.synthetic import train_images, validation_images, write_archives

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("readers")
    source = write_archives(root / "imagenet", train_images(), validation_images())
    output = root / "shards"
    manifests = build(BuildOptions(source=str(source), output=str(output), shard_mb=1, workers=1))
    assert [manifest.split for manifest in manifests] == ["train", "validation"]
    return output


def test_webdataset_reads_every_sample(packed: Path):
    expected = {image.stem: image for image in train_images()}
    manifest = load_manifest(str(packed), "train")
    urls = [str(packed / shard.name) for shard in manifest.shards]
    seen = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        image = expected[sample["__key__"]]
        assert sample["jpg"] == image.data
        assert int(sample["cls"]) == image.label
        assert json.loads(sample["json"])["class"] == image.wnid
        seen[sample["__key__"]] = True
    assert seen.keys() == expected.keys()


def test_timm_reads_every_sample(packed: Path):
    import timm.data

    for split, count in (("train", 60), ("validation", 20)):
        dataset = timm.data.create_dataset("wds/imagenet1k", root=str(packed), split=split)
        assert len(dataset) == count
        labels = sorted(target for _, target in dataset)
        expected = train_images() if split == "train" else validation_images()
        assert labels == sorted(image.label for image in expected)


def test_index_leads_to_the_bytes_and_digests_hold(packed: Path):
    expected = {image.stem: image for image in validation_images()}
    manifest = load_manifest(str(packed), "validation", name="imagenet1k")
    table = load_index(str(packed), manifest)
    assert table.num_rows == manifest.num_samples == len(expected)
    positions = list(zip(table["shard"].to_pylist(), table["offset"].to_pylist(), strict=True))
    assert positions == sorted(positions)
    for row in table.to_pylist():
        image = expected[row["key"]]
        content = (packed / manifest.shards[row["shard"]].name).read_bytes()
        data = content[row["offset"] : row["offset"] + row["size"]]
        assert data == image.data
        assert row["label"] == image.label
        assert row["xxh64"] == xxhash.xxh64_intdigest(data)
        assert (row["width"], row["height"]) == Image.open(io.BytesIO(data)).size
    for shard in manifest.shards:
        content = (packed / shard.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
