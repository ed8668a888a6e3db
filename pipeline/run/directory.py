"""The run directory: it belongs to one user and one training, and one attempt at a time writes to it."""

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from pipeline.common.atomic import write_json
from pipeline.common.processes import PROJECT_ROOT
from pipeline.common.secrets import mask_secrets
from pipeline.config.schema import TrainConfig
from pipeline.config.serialise import difference, digest, to_dict
from pipeline.run.code_state import git_state
from pipeline.run.config import RunConfig, read_config
from pipeline.run.files import CONFIG_NAME, LOCK_NAME, RunDirectoryError
from pipeline.run.notify import hide_address
from pipeline.run.recorder import log

STATUS_LOCK_S = 1.0
"""Seconds for which a process that only reads the status may hold a run's lock."""


def check(run_dir: Path, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Refuse a folder that `prepare` would refuse, without writing to it.

    Args:
        run_dir: the folder; it may be missing.
        config: the training.
        facts: as for `prepare`.

    Raises:
        RunDirectoryError: the folder belongs to another user or to another training (the message names the
            differences), or cannot be read.
    """
    try:
        if not run_dir.exists():
            return
        owner, names = run_dir.stat().st_uid, [path.name for path in run_dir.iterdir()]
    except OSError as error:
        raise RunDirectoryError(f"--run-dir {run_dir} cannot be used: {error.strerror}") from error
    if owner != os.getuid():
        raise RunDirectoryError(f"--run-dir {run_dir} belongs to another user; take one of your own")
    if CONFIG_NAME in names:
        differences = describe_differences(read_config(run_dir), config, facts)
        if differences:
            raise RunDirectoryError(
                f"--run-dir {run_dir} belongs to another training:\n  "
                + "\n  ".join(differences)
                + "\nrepeat its flags to resume it, or take another --run-dir"
            )
    elif names:
        raise RunDirectoryError(f"--run-dir {run_dir} is not empty and holds no {CONFIG_NAME}; take another one")


def describe_differences(previous: RunConfig, config: TrainConfig, facts: dict[str, Any]) -> list[str]:
    """Return a line for each value, and each split, that makes a training another one than that of a run.

    Args:
        previous: of the run.
        config: the training.
        facts: as for `prepare`.
    """
    return difference(previous.train, config) + _changed_data(previous, facts)


def _changed_data(previous: RunConfig, facts: dict[str, Any]) -> list[str]:
    """Return a line for each split whose images or order differ from those that the run began with."""
    dataset = facts.get("dataset", {})
    digests = (
        ("training", previous.training_digest, dataset.get("digest")),
        ("validation", previous.validation_digest, dataset.get("validation_digest")),
    )
    return [
        f"{split} shards of digest {old[:12]} -> {new[:12]}: other images or another order"
        for split, old, new in digests
        if old is not None and new is not None and old != new
    ]


def prepare(run_dir: Path, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Make `run_dir` (mode 0700) and write `config.json`; a folder of the same training is kept.

    Args:
        run_dir: the folder; it may be missing.
        config: the training.
        facts: what `config.json` holds beside the training; the digests in `dataset` must equal the previous launch's.

    Raises:
        RunDirectoryError: as `check`, or the folder cannot be written.
    """
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"--run-dir {run_dir} cannot be made: {error.strerror}") from error
    check(run_dir, config, facts)
    os.chmod(run_dir, 0o700)
    content = {
        "train": to_dict(config),
        "digest": digest(config),
        "git": git_state(PROJECT_ROOT),
        "command": [*_program(Path(sys.argv[0])), *map(mask_secrets, hide_address(sys.argv[1:]))],
        **facts,
    }
    try:
        write_json(run_dir / CONFIG_NAME, content, durable=True)
    except OSError as error:
        raise RunDirectoryError(f"--run-dir {run_dir} cannot be written: {error.strerror}") from error


def _program(path: Path) -> list[str]:
    """Return the words that start a program again; of a package's `__main__.py` those are `python -m PACKAGE`."""
    if path.name != "__main__.py":
        return [path.name]
    return ["python", "-m", f"{path.parent.parent.name}.{path.parent.name}"]


def lock(run_dir: Path, patience_s: float = STATUS_LOCK_S) -> IO[str]:
    """Hold `run_dir` for this process; the kernel releases the lock when the process ends, however it ends.

    Args:
        run_dir: of the run.
        patience_s: how long to wait for another holder, in seconds; by default as long as a process reads the status.

    Returns:
        The open lock file.

    Raises:
        RunDirectoryError: another attempt holds the lock, or the file system has no locks.
    """
    file = (run_dir / LOCK_NAME).open("a+", encoding="utf-8")
    holder = "unknown"
    try:
        try:
            _flock(file, min(patience_s, STATUS_LOCK_S))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or holder
            if patience_s <= STATUS_LOCK_S:
                raise
            log(f"waiting up to {patience_s:.0f} s for another attempt ({holder}) to leave {run_dir}")
            _flock(file, patience_s)
    except BlockingIOError:
        file.close()
        raise RunDirectoryError(
            f"{run_dir} is being trained by another attempt ({holder}); wait for it or cancel it"
        ) from None
    except OSError as error:
        file.close()
        raise RunDirectoryError(
            f"{run_dir} cannot be locked ({error.strerror}): its file system needs flock (Lustre: mount -o flock)"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    return file


def _flock(file: IO[str], patience_s: float) -> None:
    """Take the lock, or try again until the time is over."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(STATUS_LOCK_S / 10)
