"""Files are published complete or not at all."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding import OutputError
from sharding.pool import prepare_workers
from tests.sharding.builds import check_only_final_files, digests, flags, pack, run_build


def test_files_are_on_disk_before_they_are_renamed(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fsync, replace, done = os.fsync, os.replace, []

    def logged_fsync(descriptor: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def logged_replace(old: str, new: str) -> None:
        done.append(("replace", old))
        replace(old, new)
        done.append(("appeared", new))

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    pack(source, tmp_path)
    published = [position for position, (what, path) in enumerate(done) if what == "appeared" and ".parts" not in path]
    assert len(published) == len(digests(tmp_path))
    for position in published:
        temporary = done[position - 1][1]
        assert done[position - 2] == ("fsync", temporary)
        assert done[position + 1] == ("fsync", str(tmp_path))


def test_a_write_that_fails_halfway_leaves_no_file(source: str, reference: dict[str, str], tmp_path: Path):
    prepare_workers("sharding.writer")  # the fork server, which later tests use too, starts without the limit
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        done = run_build(*flags(source, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/imagenet1k-train-0000.tar could not be written: File too large")
    assert len(done.stderr.splitlines()) == 1
    assert not [name for name in digests(tmp_path) if name.endswith((".tar", ".tmp", ".part"))]
    pack(source, tmp_path)
    assert digests(tmp_path) == reference


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three MB: less than all shards of `source`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_finished_shards(
    small_disk: Path, source: str, reference: dict[str, str], tmp_path: Path
):
    done = run_build(*flags(source, small_disk))
    assert done.returncode == 1
    assert "could not be written: No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    check_only_final_files(small_disk, reference)
    tars = sorted(name for name in digests(small_disk) if name.endswith(".tar"))
    assert tars
    larger = tmp_path / "larger"
    shutil.copytree(small_disk, larger)
    kept = (larger / tars[0]).stat().st_ino
    pack(source, larger)
    assert digests(larger) == reference
    assert (larger / tars[0]).stat().st_ino == kept


def test_a_quota_that_is_reached_is_named_and_the_next_build_completes(
    source: str, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writev, written = os.writev, [0]

    def limited(descriptor: int, buffers: list[memoryview]) -> int:
        written[0] += sum(map(len, buffers))
        if written[0] > 2_500_000:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return writev(descriptor, buffers)

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", limited)
        with pytest.raises(OutputError, match=r"could not be written: Disk quota exceeded. No part .* Free some space"):
            pack(source, tmp_path)
    check_only_final_files(tmp_path, reference)
    pack(source, tmp_path)
    assert digests(tmp_path) == reference
