"""Remote shards through the node's cache: bounded, shared, safe under kill -9, and patient with a failing server."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.data.cache import CacheError, RemoteShards, ShardCache, locked

SIZE = 50_000


@pytest.fixture
def source(tmp_path):
    """A folder with four "shards" of 50 kB, which stands for remote storage."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.tar").write_bytes(bytes([number]) * SIZE)
    return folder


def shards(source: Path, cache: Path, limit: int, digest: str = "d" * 64) -> RemoteShards:
    cache.mkdir(exist_ok=True)
    return RemoteShards(str(source), digest, {f"{n}.tar": SIZE for n in range(4)}, str(cache), limit)


def content(cache: ShardCache, name: str) -> bytes:
    descriptor = cache.open(name)
    try:
        return os.pread(descriptor, 2 * SIZE, 0)
    finally:
        os.close(descriptor)


def kept(folder: Path) -> list[str]:
    return sorted(path.name[-5:] for path in folder.iterdir() if path.name.startswith("shard-"))


def test_the_cache_keeps_its_bound_and_evicts_the_least_recently_used(source, tmp_path):
    cache = ShardCache(shards(source, tmp_path / "cache", 2 * SIZE + 10))
    held = cache.open("0.tar")
    for name in ("1.tar", "0.tar", "2.tar"):
        time.sleep(0.02)
        assert content(cache, name) == bytes([int(name[0])]) * SIZE
    assert kept(tmp_path / "cache") == ["0.tar", "2.tar"]
    content(cache, "3.tar")
    time.sleep(0.02)
    content(cache, "1.tar")
    assert kept(tmp_path / "cache") == ["1.tar", "3.tar"]
    assert os.pread(held, SIZE, 0) == bytes(SIZE)  # still open, although the cache has removed it
    os.close(held)


def test_a_clock_that_was_ahead_breaks_neither_bound_nor_content(source, tmp_path):
    """Shards that were cached in the future look as if they were used last, until the clock comes there."""
    cache = ShardCache(shards(source, tmp_path / "cache", 2 * SIZE + 10))
    for name in ("0.tar", "1.tar"):
        content(cache, name)
    for path in (tmp_path / "cache").glob("shard-*"):
        os.utime(path, (4e9, 4e9))
    for name in ("2.tar", "3.tar", "0.tar", "2.tar"):
        assert content(cache, name) == bytes([int(name[0])]) * SIZE
        assert len(kept(tmp_path / "cache")) == 2


def test_two_versions_of_a_split_share_the_bound_and_no_file(source, tmp_path):
    content(ShardCache(shards(source, tmp_path / "cache", 3 * SIZE)), "1.tar")
    (source / "1.tar").write_bytes(b"n" * SIZE)
    other = ShardCache(shards(source, tmp_path / "cache", 3 * SIZE, digest="e" * 64))
    assert content(other, "1.tar") == b"n" * SIZE
    assert kept(tmp_path / "cache") == ["1.tar", "1.tar"]
    content(other, "2.tar")
    content(other, "3.tar")
    assert len(kept(tmp_path / "cache")) == 3


def test_a_shard_that_cannot_fit_or_is_not_what_the_manifest_says_is_an_error(source, tmp_path):
    with pytest.raises(CacheError, match=r"no room for a shard of 0.00 GB in .*raise --train.data.cache-gb"):
        ShardCache(shards(source, tmp_path / "cache", SIZE - 1)).open("0.tar")
    (source / "0.tar").write_bytes(b"short")
    with pytest.raises(CacheError, match=r"0.tar has 5 bytes; its manifest says 50000"):
        ShardCache(shards(source, tmp_path / "cache", 4 * SIZE)).open("0.tar")
    assert not kept(tmp_path / "cache")


KILLED = """
import os, signal, sys
from pipeline.data.cache import RemoteShards, ShardCache
from tests.pipeline.data.test_cache import SIZE, shards
from pathlib import Path
class Slow(ShardCache):
    def _download(self, name, part, size):
        part.write_bytes(b"half")
        print("half", flush=True)
        signal.pause()
Slow(shards(Path(sys.argv[1]), Path(sys.argv[2]), 4 * SIZE)).open("0.tar")
"""


def test_a_download_without_progress_ends_before_the_other_ranks_give_up(source, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.cache._PATIENCE_S", 0.5)
    (source / "1.tar").unlink()
    with pytest.raises(CacheError, match=r"1\.tar could not be fetched in [1-5] attempts"):
        ShardCache(shards(source, tmp_path / "cache", 2 * SIZE)).open("1.tar")


def test_a_killed_download_leaves_no_shard_in_the_cache(source, tmp_path):
    folder = tmp_path / "cache"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(source), str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert [path.name for path in folder.glob(".*.part")]
    # Another shard needs the whole bound: the partial file of the dead process is removed.
    assert content(ShardCache(shards(source, folder, SIZE)), "1.tar") == b"\1" * SIZE
    assert not list(folder.glob(".*.part"))
    assert content(ShardCache(shards(source, folder, 4 * SIZE)), "0.tar") == bytes(SIZE)


JOB = """
import os, sys
from pathlib import Path
from pipeline.data.cache import ShardCache
from tests.pipeline.data.test_cache import SIZE, content, shards
cache = ShardCache(shards(Path(sys.argv[1]), Path(sys.argv[2]), 2 * SIZE + 10, digest=sys.argv[3] * 64))
print("reading", flush=True)
for number in range(int(sys.argv[4])):
    name = f"{number * 7 % 4}.tar"
    assert content(cache, name) == bytes([int(name[0])]) * SIZE
"""


def test_jobs_that_share_a_cache_keep_its_bound_also_where_one_is_killed(source, tmp_path):
    """Three jobs read at once, each more than the bound; two of them read the same split."""
    folder = tmp_path / "cache"

    def start(digest: str, reads: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", JOB, str(source), str(folder), digest, str(reads)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start("d", 300) as first, start("e", 300) as second, start("d", 10**9) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        time.sleep(0.1)
        killed.kill()
        while first.poll() is None or second.poll() is None:
            with locked(folder / ".room.lock"):  # no job removes a shard meanwhile
                assert sum(path.stat().st_size for path in folder.glob("shard-*")) <= 2 * SIZE + 10
            time.sleep(0.01)
    assert (first.returncode, second.returncode) == (0, 0)
