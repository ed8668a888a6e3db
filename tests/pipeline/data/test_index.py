"""A node's copy of an index is written once, mapped by all processes, and small."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.cache import CacheError
from pipeline.data.index import CacheFolderError, cache_folder, open_index
from sharding import load_manifest
from sharding.index_table import INDEX_SCHEMA, index_digest
from sharding.manifest import ClassInfo, Manifest, ManifestError, ShardInfo, write_manifest
from sharding.storage import Folder
from tests.support.small_shards import pack

IMAGENET = 1_281_167


def synthetic(folder: Path, samples: int, shards: int) -> None:
    """Write manifest and index of a split of `samples` samples, without its shards."""
    sizes = [samples // shards + (number < samples % shards) for number in range(shards)]
    rows = np.arange(samples)
    columns = {
        "key": [f"n{10_000_000 + row % 1000}_{row}" for row in range(samples)],
        "label": rows % 1000,
        "shard": np.repeat(np.arange(shards), sizes),
        "offset": rows * 110_000,
        "size": np.full(samples, 110_000),
        "width": np.full(samples, 500),
        "height": np.full(samples, 375),
        "xxh64": rows.astype(np.uint64) * np.uint64(2654435761),
        "target_offset": rows * 110_000 + 109_000,
        "target_size": np.full(samples, 3),
        "target_xxh64": rows.astype(np.uint64),
    }
    index = pa.table({field.name: pa.array(columns[field.name], field.type) for field in INDEX_SCHEMA}, INDEX_SCHEMA)
    manifest = Manifest(
        name="synthetic",
        split="train",
        classes=tuple(ClassInfo(f"n{label:08d}", f"class {label}") for label in range(1000)),
        shards=tuple(ShardInfo(f"synthetic-train-{n:04d}.tar", size, 1, "0" * 64) for n, size in enumerate(sizes)),
        index_sha256=index_digest(index),
    )
    write_manifest(Folder.open(str(folder)), manifest, index)


OPEN = """
import sys
from pipeline.data.cache import CacheError
from pipeline.data.index import CacheFolderError, cache_folder, open_index
from sharding import load_manifest
index = open_index(sys.argv[1], load_manifest(sys.argv[1], "train"), cache_folder(sys.argv[2]))
print(len(index.rows), *index.keys([0, 99]))
"""


def test_processes_that_open_an_index_at_once_share_it(tmp_path):
    synthetic(tmp_path, 100_000, 7)
    command = [sys.executable, "-c", OPEN, str(tmp_path), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate()[0] for process in processes} == {"100000 n10000000_0 n10000099_99\n"}
    assert len(list((tmp_path / "cache").glob("*index-*"))) == 1


def test_a_damaged_index_is_an_error_with_its_name(tmp_path):
    synthetic(tmp_path, 1_000, 7)
    manifest = load_manifest(str(tmp_path), "train")
    (tmp_path / "synthetic-train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ManifestError, match=r"synthetic-train.parquet cannot be read: .*sharding.index --shards"):
        open_index(str(tmp_path), manifest, cache_folder(str(tmp_path / "cache")))


def test_a_full_disk_under_the_index_is_named(tmp_path):
    synthetic(tmp_path, 60_000, 7)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        with pytest.raises(
            CacheFolderError, match=r"written to .*/disk \(the disk is full or .*--train.data.cache-dir"
        ):
            open_index(str(tmp_path), load_manifest(str(tmp_path), "train"), cache_folder(str(disk)))
        assert [path.name for path in disk.iterdir()] == [".index.lock"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_cache_on_a_file_system_without_locks_is_refused_with_its_folder(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    synthetic(tmp_path, 100, 7)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        CacheError, match=r"/cache cannot be a cache: .*Operation not supported.*--train.data.cache-dir"
    ):
        open_index(str(tmp_path), load_manifest(str(tmp_path), "train"), cache_folder(str(tmp_path / "cache")))


def test_the_index_of_imagenet_takes_less_than_64_megabytes_a_node(tmp_path):
    shards = (17, 9, 23)
    index = open_index(str(tmp_path), pack(tmp_path, shards), cache_folder(str(tmp_path / "cache")))
    assert index.keys([0, 27, 48]) == ["photo_00000", "photo_00027", "photo_00048"]
    files = list(Path(index.folder).iterdir())
    headers = 2 * 128 + (Path(index.folder) / "shards.json").stat().st_size
    letters = len("photo_00000") * sum(shards)
    a_sample = (sum(file.stat().st_size for file in files) - headers - letters) / sum(shards) + len("n01440764_10026")
    assert a_sample * IMAGENET < 64e6


OPEN_LATE = """
import json, sys, time
import torch
import pipeline.data.source, pyarrow.fs
from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.data.loader import build_train_loader

def kilobytes(file, *names):
    lines = [line.split() for line in open(file)]
    return sum(int(line[1]) for line in lines if line[0].rstrip(":") in names)

def mapped(folder):
    total, inside = 0, False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            inside = folder in line
        total += int(line.split()[1]) if inside and line.startswith("Pss:") else 0
    return total

before = kilobytes("/proc/self/status", "RssAnon")
peak = kilobytes("/proc/self/status", "VmHWM")
data = DataConfig(shards=sys.argv[1], cache_dir=sys.argv[2], workers=0)
config = TrainConfig(global_batch_size=1024, micro_batch_size=128, data=data)
steps = 300 * 1_281_167 // 1024
seconds = []
for step in map(int, sys.argv[3:]):
    started = time.process_time()
    with build_train_loader(config, world_size=2, rank=0, start_step=step, total_steps=steps, device="cpu") as loader:
        request = next(loader._source._requests)
        assert (request.step, len(set(request.rows.tolist()))) == (step, 128)
        seconds.append(time.process_time() - started)
        index = loader._index
labels = int(index.rows["label"].astype("int64").sum()), index.keys(range(0, 1_281_167, 1000))
print(json.dumps({"seconds": max(seconds)}), flush=True)
sys.stdin.readline()  # all have mapped it
grown = kilobytes("/proc/self/status", "RssAnon") - before
peak = kilobytes("/proc/self/status", "VmHWM") - peak
print(json.dumps({"anonymous": grown, "mapped": mapped(sys.argv[2]), "peak": peak}))
"""


@pytest.mark.slow
def test_two_ranks_open_imagenets_index_at_any_step_in_64_megabytes(tmp_path):
    """The first two ranks on a node open the index and touch every row; each stays below 200 MB at its peak."""
    synthetic(tmp_path, IMAGENET, 1024)
    steps = 300 * IMAGENET // 1024
    command = [sys.executable, "-c", OPEN_LATE, str(tmp_path), str(tmp_path / "cache")]

    def both(*steps: int) -> list[dict[str, float]]:
        arguments = [*command, *map(str, steps)]
        ranks = [subprocess.Popen(arguments, stdin=-1, stdout=-1, text=True) for _ in range(2)]
        said = [json.loads(rank.stdout.readline()) for rank in ranks if rank.stdout]
        rest = []
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        for rank, first in zip(ranks, said, strict=True):
            assert rank.stdout is not None
            rest.append(first | json.loads(rank.stdout.readline()))
            rank.communicate()
        return rest

    for measured in (both(0), both(0, steps // 3, steps - 1)):
        print(measured)
        assert sum(rank["anonymous"] + rank["mapped"] for rank in measured) * 1024 < 64e6
        assert max(rank["peak"] for rank in measured) * 1024 < 200e6
    assert max(rank["seconds"] for rank in measured) < 1
