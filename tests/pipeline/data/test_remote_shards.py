"""Shards on an S3 server are read as local ones are, also while the server fails."""

import hashlib
from itertools import chain

import pytest

from pipeline.data.loader import build_train_loader
from pipeline.data.reader import LoaderError
from pipeline.launch.data_checks import check_shards
from pipeline.launch.options import LaunchError
from sharding import open_filesystem
from tests.pipeline.data.reading import evaluation_loader
from tests.support import detections, segmentations
from tests.support.label_maps import pack_masks
from tests.support.object_store import KEYS, FaultyProxy, place, s3_server
from tests.support.objects import pack_objects
from tests.support.small_shards import config, pack

SHARDS = (17, 9, 23, 4, 30, 12)


@pytest.fixture(scope="module")
def proxy():
    """A proxy before moto's S3 server; no request is tried more than twice."""
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_MAX_ATTEMPTS": "2"}.items():
            patch.setenv(name, value)
        proxy = FaultyProxy(port)
        proxy.faults = (500, 0)
        yield proxy
        proxy.close()


@pytest.fixture(scope="module")
def bucket(proxy, tmp_path_factory):
    """Small shards on the server: (URI through the proxy, local copy)."""
    local = tmp_path_factory.mktemp("local")
    pack(local, SHARDS)
    pack(local, (13, 8), split="validation")
    uri = f"s3://shards/small?{place(proxy.port)}"
    filesystem, path = open_filesystem(uri)
    filesystem.create_dir(path, recursive=True)
    for file in local.iterdir():
        with filesystem.open_output_stream(f"{path}/{file.name}") as stream:
            stream.write(file.read_bytes())
    return uri, local


def read(settings, *, world_size: int = 1, rank: int = 0, steps: int = 12) -> dict[tuple[int, int], str]:
    seen = {}
    with build_train_loader(
        settings, world_size=world_size, rank=rank, start_step=0, total_steps=steps, device="cpu"
    ) as loader:
        for batches in loader:
            for batch in batches:
                for position, row in enumerate(batch.indices.tolist()):
                    pixels, target = batch.images[position], batch.labels[position]
                    if batch.sizes is not None:  # memory that is larger than the sample
                        height, width, used, _ = batch.sizes[position].tolist()
                        pixels, target = pixels[: 3 * height * width], target[:used]
                    content = b"".join(part.contiguous().numpy().tobytes() for part in (pixels, target))
                    seen[batch.step, row] = hashlib.sha256(content).hexdigest()
    return seen


def test_a_remote_split_equals_the_local_one_over_a_failing_server(bucket, proxy, tmp_path):
    uri, local = bucket
    expected = read(config(local, tmp_path / "index"))
    proxy.fail_every, proxy.requests = 10, 0
    try:
        largest = max(path.stat().st_size for path in local.glob("*.tar"))
        room = {"workers": 2, "cache_gb": 3.2 * largest / 1e9}
        cache = tmp_path / "cache"
        seen = {}
        for rank in range(2):
            seen |= read(config(uri, cache, data=room), world_size=2, rank=rank)
    finally:
        proxy.fail_every = 0
    assert seen == expected
    assert proxy.requests > 20  # at least two requests failed
    taken = sum(path.stat().st_size for path in cache.glob("shard-*"))
    assert 0 < taken <= room["cache_gb"] * 1e9


@pytest.mark.thorough
def test_ranks_of_a_node_fetch_each_shard_once(bucket, proxy, tmp_path):
    uri, _ = bucket
    proxy.fetched.clear()
    settings = config(uri, tmp_path / "cache", data={"workers": 1})
    loaders = [
        build_train_loader(settings, world_size=2, rank=rank, start_step=0, total_steps=8, device="cpu")
        for rank in range(2)
    ]
    for pair in zip(*loaders, strict=True):
        for batches in pair:
            list(batches)
    for loader in loaders:
        loader.close()
    assert sorted(proxy.fetched) == [f"/shards/small/small-train-{shard:04d}.tar" for shard in range(len(SHARDS))]


@pytest.mark.thorough
def test_evaluation_reads_remote_shards(bucket, tmp_path):
    uri, _ = bucket
    rows = []
    for rank in range(2):
        settings = config(uri, tmp_path / "cache")
        with evaluation_loader(settings, world_size=2, rank=rank) as loader:
            rows += [row for batch in loader for row in batch.indices.tolist()]
    assert sorted(rows) == list(range(21))


@pytest.mark.parametrize(
    ("pack_targets", "training", "name"),
    [
        pytest.param(pack_masks, segmentations.training, "maps", marks=pytest.mark.thorough),
        (pack_objects, detections.training, "objects"),
    ],
)
def test_targets_on_a_server_are_read_as_local_ones_are(bucket, tmp_path, pack_targets, training, name):
    remote = bucket[0].replace("/small?", f"/{name}?")
    pack_targets(tmp_path)
    filesystem, path = open_filesystem(remote)
    filesystem.create_dir(path, recursive=True)
    for file in (tmp_path / "shards").iterdir():
        with filesystem.open_output_stream(f"{path}/{file.name}") as stream:
            stream.write(file.read_bytes())
    expected = read(training(tmp_path / "shards", tmp_path / "index", global_batch_size=4), steps=3)
    assert len(expected) == 12
    assert read(training(remote, tmp_path / "cache", global_batch_size=4), steps=3) == expected


def test_a_cache_that_no_shard_fits_into_is_refused_before_anything_is_queued(bucket, tmp_path):
    uri, local = bucket
    assert check_shards(config(uri, tmp_path)).num_validation == 21
    small = {"cache_gb": 1e-6}
    with pytest.raises(LaunchError, match=r"--train.data.cache-gb 1e-06 is less than a shard of s3://"):
        check_shards(config(uri, tmp_path, data=small))
    check_shards(config(local, tmp_path, data=small))


def test_a_failing_server_is_reported_with_the_sample(bucket, proxy, tmp_path, monkeypatch):
    uri, _ = bucket
    monkeypatch.setattr("pipeline.data.cache._ATTEMPTS", 1)
    with build_train_loader(
        config(uri, tmp_path / "cache"), world_size=1, rank=0, start_step=0, total_steps=12, device="cpu"
    ) as loader:
        steps = iter(loader)
        monkeypatch.setattr(proxy, "fail_every", 1)
        with pytest.raises(LoaderError, match=r"sample photo_\d+ of s3://.*tar could not be fetched in 1 attempts"):
            list(chain.from_iterable(steps))
