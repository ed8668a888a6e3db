"""The folder of a run: who may use it, what it was started with, and that only one attempt writes to it at a time."""

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from pipeline.common.atomic import write_json
from pipeline.config.schema import TrainConfig
from pipeline.config.serialise import difference, digest, to_dict
from pipeline.run.code_state import git_state
from pipeline.run.config import RunConfig, read_config
from pipeline.run.files import CONFIG_NAME, LOCK_NAME, RunDirectoryError

GLANCE_S = 1.0
"""How long somebody who only looks may hold a run's lock."""


def check(run_dir: Path, config: TrainConfig, extra: dict[str, Any]) -> None:
    """Refuse a folder that `prepare` would refuse, as far as that shows without writing.

    Raises:
        RunDirectoryError: it is not this user's, or belongs to another training (the difference is in the message).
    """
    try:
        if not run_dir.exists():
            return
        owner, holds = run_dir.stat().st_uid, [path.name for path in run_dir.iterdir()]
    except OSError as error:
        raise RunDirectoryError(f"--run-dir {run_dir} cannot be used: {error.strerror}") from error
    if owner != os.getuid():
        raise RunDirectoryError(f"--run-dir {run_dir} belongs to another user; take one of your own")
    if CONFIG_NAME in holds:
        before = read_config(run_dir)
        differences = difference(before.train, config) + _changed_data(before, extra)
        if differences:
            raise RunDirectoryError(
                f"--run-dir {run_dir} belongs to another training:\n  "
                + "\n  ".join(differences)
                + "\nrepeat its flags to resume it, or take another --run-dir"
            )
    elif holds:
        raise RunDirectoryError(f"--run-dir {run_dir} is not empty and holds no {CONFIG_NAME}; take another one")


def prepare(run_dir: Path, config: TrainConfig, extra: dict[str, Any]) -> None:
    """Make `run_dir` (0700) and write `config.json`, or check that the one there is of the same training.

    Args:
        run_dir: the folder; made if it is missing.
        config: what will be trained.
        extra: `resources`, `tracking_uri`, `dataset` and whatever else is worth keeping; of these only the digests
            of `dataset` are compared.

    Raises:
        RunDirectoryError: the folder is not this user's, cannot be written, or belongs to another training (the
            difference is in the message).
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"--run-dir {run_dir} cannot be made: {error.strerror}") from error
    check(run_dir, config, extra)
    os.chmod(run_dir, 0o700)
    content = {
        "train": to_dict(config),
        "digest": digest(config),
        "git": git_state(Path(__file__).parent),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        **extra,
    }
    try:
        write_json(run_dir / CONFIG_NAME, content, durable=True)
    except OSError as error:
        raise RunDirectoryError(f"--run-dir {run_dir} cannot be written: {error.strerror}") from error


def _changed_data(before: RunConfig, extra: dict[str, Any]) -> list[str]:
    """Return a line for each split whose images or order differ from those that the run began with."""
    now = extra.get("dataset", {})
    digests = (
        ("training", before.training_digest, now.get("digest")),
        ("validation", before.validation_digest, now.get("validation_digest")),
    )
    return [
        f"{split} shards of digest {old[:12]} -> {new[:12]}: other images or another order"
        for split, old, new in digests
        if old is not None and new is not None and old != new
    ]


def _flock(handle: IO[str]) -> None:
    """Take the lock, trying again for a moment: who looks whether a run is being trained holds it as well."""
    deadline = time.monotonic() + GLANCE_S
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(GLANCE_S / 10)


def lock(run_dir: Path) -> IO[str]:
    """Hold `run_dir` for this process until it ends, however it ends: the kernel keeps the lock.

    Raises:
        RunDirectoryError: another attempt holds it, or its file system has no locks.
    """
    handle = (run_dir / LOCK_NAME).open("a+")
    try:
        _flock(handle)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise RunDirectoryError(
            f"{run_dir} is being trained by another attempt ({holder}); wait for it or cancel it"
        ) from None
    except OSError as error:
        handle.close()
        raise RunDirectoryError(
            f"{run_dir} cannot be locked ({error.strerror}): its file system needs flock (Lustre: mount -o flock)"
        ) from error
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    handle.flush()
    return handle
