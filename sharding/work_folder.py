"""The hidden folder in which a build keeps its state until the manifest is published, and its lock."""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterator
from typing import IO

from sharding.errors import ManifestError, OutputError
from sharding.storage import Folder

SETTINGS_FILE = "settings.json"


def work_folder(output: Folder, stem: str) -> Folder:
    """The work folder of the split NAME-SPLIT: settings, records of finished shards, temporary files."""
    return output.folder(f".{stem}.parts")


def is_unfinished(output: Folder, stem: str) -> bool:
    """Whether a build of the split NAME-SPLIT has begun in a folder and has not finished."""
    return work_folder(output, stem).size(SETTINGS_FILE) is not None


def refuse_unfinished(output: Folder, stem: str) -> None:
    """Refuse to read a split whose build has not finished.

    Raises:
        ManifestError: the build of NAME-SPLIT is unfinished.
    """
    if is_unfinished(output, stem):
        raise ManifestError(
            f"{output.location!r} holds an unfinished build of {stem}: samples may be missing. Give the same build "
            "command again (python -m sharding.build): it resumes."
        )


@contextlib.contextmanager
def lock_work_folder(output: Folder, stem: str, task_index: int, task_count: int) -> Iterator[None]:
    """Lock the work folder of the split NAME-SPLIT against a second build of the same task.

    Without file locks (in a remote store, or on a file system that lacks them) two such builds only do the work twice:
    both write the same bytes.

    Raises:
        OutputError: another process is working on the same task.
    """
    if not output.is_local:
        yield
        return
    folder = work_folder(output, stem)
    folder.create()  # another build may have just published and removed it
    task_lock = folder.join(f"task-{task_index}-of-{task_count}.lock")
    with (
        open(task_lock, "w", encoding="utf-8") as own,
        open(folder.join("build.lock"), "w", encoding="utf-8") as shared,
    ):
        if _flock(own, fcntl.LOCK_EX) is False:
            raise OutputError(
                f"another build is writing {stem} to {output.location}. Wait for it, or end it; then give the same "
                "command again: it resumes."
            )
        # Every task holds the shared lock while it writes. A task that gets it exclusively is the only one running, so
        # the temporary files there are those of killed builds.
        if _flock(shared, fcntl.LOCK_EX):
            _remove_temporary_shards(folder, stem)
        with contextlib.suppress(OSError):
            fcntl.flock(shared, fcntl.LOCK_SH)
        try:
            yield
        except BaseException:
            # A worker that is ended within a shard leaves its temporary file.
            if _flock(shared, fcntl.LOCK_EX):
                _remove_temporary_shards(folder, stem)
            raise


def _remove_temporary_shards(folder: Folder, stem: str) -> None:
    """Remove the temporary files of shards."""
    for file in folder.names():
        if re.fullmatch(rf"\.{re.escape(stem)}-[0-9]+\.tar\.[0-9a-f]+\.tmp", file):
            folder.remove(file)


def _flock(stream: IO[str], kind: int) -> bool | None:
    """Try to lock a file: True if it is locked now, False if another process holds it, None without file locks."""
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
