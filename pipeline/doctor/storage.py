"""Looks at a folder's file system: kind, room, locks, and how long it takes to write and to be sure."""

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from jobs import describe_machine
from pipeline.common.atomic import fsync
from pipeline.doctor.finding import Finding

SIZE_MB = 64
"""Megabytes that are written and read to measure the speed."""
FSYNCS = 10
SLOW_FSYNC_S = 0.2
LITTLE_GB = 20


def look_at_storage(folder: Path) -> Iterator[Finding]:
    """Yield what a run directory in `folder` would find; the files that are written there are removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        yield Finding("problem", f"{folder} cannot be made: {error.strerror}; choose another folder with --runs")
        return
    systems = cast("dict[str, dict[str, object]]", describe_machine([folder])["file_systems"])
    system = systems[str(folder)]
    room = cast("float", system.get("free_gb", 0.0))
    place = f"{folder.resolve()}: {system.get('kind')} at {system.get('mounted_at')}, {room:,.0f} GB free"
    yield Finding("ok" if room >= LITTLE_GB else "warning", place + ("" if room >= LITTLE_GB else ": little room"))
    probe = folder / f".doctor.{os.getpid()}"
    try:
        yield _locks(probe)
        yield from _speed(probe)
    except OSError as error:
        yield Finding("problem", f"{folder} cannot be written: {error.strerror}; choose another folder with --runs")
    finally:
        probe.unlink(missing_ok=True)


def _locks(probe: Path) -> Finding:
    try:
        with probe.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Finding(
            "problem",
            f"files cannot be locked there ({error.strerror}): on Lustre ask for the mount option flock, or keep runs "
            "elsewhere; otherwise two launches may write one run",
        )
    return Finding("ok", "files can be locked there")


def _speed(probe: Path) -> Iterator[Finding]:
    content = os.urandom(2**20)
    began = time.monotonic()
    with probe.open("wb") as file:
        for _ in range(SIZE_MB):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rate = SIZE_MB / (time.monotonic() - began)
    yield Finding("ok", f"{rate:,.0f} MB/s written, with fsync; a checkpoint of TransXNet-T is 0.2 GB")
    began = time.monotonic()
    for _ in range(FSYNCS):
        probe.write_bytes(b"x")
        fsync(probe)
    each = (time.monotonic() - began) / FSYNCS
    slow = "" if each < SLOW_FSYNC_S else ": each save waits for several, so save seldom (--train.save-every-steps)"
    yield Finding("warning" if slow else "ok", f"{1000 * each:,.1f} ms for a small file to be on the disk{slow}")
