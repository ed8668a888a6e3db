"""A node's copies of shards: whole files in a folder that ranks, loader workers and jobs share, up to a limit.

The shards are remote ones, or those of a slow shared folder that are staged on the node's own disk.

There is no server; file operations keep the cache consistent:
- A process downloads a shard to a part file and renames it, so a shard is complete when it appears under its name.
- The process that downloads a shard holds a file lock, which the kernel releases when the process dies.
- A process frees and reserves room for a shard under one lock of the folder.
- A shard that is removed to make room stays readable for the processes that have it open.

`kill -9` leaves at most a part file, which the next process that needs room removes.
"""

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import PipelineError

if TYPE_CHECKING:
    from pyarrow import fs


logger = logging.getLogger(__name__)
CACHE_DIR, STAGE = "--train.data.cache-dir", "--train.data.stage"
"""Flags that choose the folder of a cache."""
_CHUNK_BYTES = 8 << 20
"""Bytes of one read from the remote file."""
_ATTEMPTS = 6
"""Attempts in a row without progress after which a download fails."""
_PATIENCE_S = 300
"""Seconds without progress after which a failed attempt is the last: the other ranks wait ten minutes for a batch."""
_FIRST_PAUSE_S = 0.2
"""Seconds before the first retry; the pause doubles with each further one."""
_ROOM_PAUSE_S = 0.05
"""Seconds between two attempts to reserve room."""
_PART = ".part"
"""End of the name of a part file."""
_SHARD = re.compile(r"\.?shard-[0-9a-f]{16}-")
"""Beginning of the names of the cache's own files; whatever else lies in the folder is the user's."""


class CacheError(PipelineError, RuntimeError):
    """A shard could not be downloaded, or the cache has no room for it."""


@dataclass(frozen=True)
class RemoteShards:
    """The shards of a split that a node does not read in place, and the cache for them; small and picklable.

    Attributes:
        location: URI of the remote folder, or path of the shared folder.
        digest: digest of the manifest; part of the cached files' names, so two versions of a split share no file.
        sizes: number of bytes of each shard, by its file name.
        folder: local folder of the cache.
        limit: greatest number of bytes that all shards in the cache may take together.
        flag: flag that chooses the folder, for messages.
    """

    location: str
    digest: str
    sizes: dict[str, int]
    folder: str
    limit: int
    flag: str = CACHE_DIR


class ShardCache:
    """Opens the shards of one folder or URI through the node's cache."""

    def __init__(self, remote: RemoteShards) -> None:
        """Remember the shards; the first download opens the connection."""
        self._remote = remote
        self._folder = Path(remote.folder)
        self._location = remote.location.split("?")[0]
        self._prefix = f"shard-{remote.digest[:16]}-"
        self._source: tuple[fs.FileSystem, str] | None = None

    def open(self, name: str) -> int:
        """Open a shard for reading, after downloading it if it is not in the cache; return its descriptor.

        Raises:
            CacheError: the shard cannot be downloaded, or the cache has no room for it.
        """
        path = self._path(name)
        while True:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self.touch(descriptor)
                return descriptor
            self.fetch(name)

    def touch(self, descriptor: int) -> None:
        """Mark a shard as used now; the least recently used one is removed first."""
        os.utime(descriptor)

    def fetch(self, name: str) -> None:
        """Download a shard if it is not in the cache, or wait for the process that is downloading it.

        Raises:
            CacheError: the shard cannot be downloaded, or the cache has no room for it.
        """
        path, size = self._path(name), self._remote.sizes[name]
        with locked(path.with_name(f".{path.name}.lock"), self._remote.flag):
            if path.exists():
                return
            part = path.with_name(f".{path.name}{_PART}")
            part.unlink(missing_ok=True)
            self._reserve(part, size)
            try:
                self._download(name, part, size)
                # Without the lock, a process that lists the folder now could see the shard under neither name.
                with self._room():
                    os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        """Return where the cache keeps a shard."""
        return self._folder / f"{self._prefix}{name}"

    def _room(self) -> contextlib.AbstractContextManager[None]:
        """Lock the folder: to list its files and reserve room, or to rename a part file."""
        return locked(self._folder / ".room.lock", self._remote.flag)

    def _reserve(self, part: Path, size: int) -> None:
        """Reserve room for a shard; wait while the downloads of all processes together leave too little.

        Raises:
            CacheError: the shard is larger than the limit, or the disk is full.
        """
        if size > self._remote.limit:
            raise CacheError(
                f"no room for a shard of {size / 1e9:.2f} GB in {self._folder}: the cache is limited to "
                f"{self._remote.limit / 1e9:.2f} GB; raise --train.data.cache-gb"
            )
        while not self._try_to_reserve(part, size):
            time.sleep(_ROOM_PAUSE_S)

    def _try_to_reserve(self, part: Path, size: int) -> bool:
        """Remove the least recently used shards until there is room, and reserve it with a part file of that size.

        Both happen under the folder's lock, so two processes never reserve the same room.

        Returns:
            Whether room was reserved; downloads of other processes may leave too little.

        Raises:
            CacheError: the disk is full.
        """
        with self._room():
            entries = sorted(self._entries())
            taken = sum(entry_size for _, entry_size, _ in entries)
            for _, entry_size, path in entries:
                if taken + size <= self._remote.limit:
                    break
                if _remove(path):
                    taken -= entry_size
            if taken + size > self._remote.limit:
                return False
            try:
                with part.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise CacheError(
                    f"the disk of {self._folder} has no room for a shard of {size / 1e9:.2f} GB ({error.strerror}): "
                    f"free some space, lower --train.data.cache-gb, or choose another {self._remote.flag}"
                ) from error
            return True

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield (time of last use, bytes, path) of every shard and part file in the folder, of all data sets."""
        for path in self._folder.iterdir():
            if _SHARD.match(path.name) and not path.name.endswith(".lock"):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path

    def _download(self, name: str, part: Path, size: int) -> None:
        """Download a shard into its part file; after a broken connection, continue where it broke.

        Raises:
            CacheError: the remote file has another size than the manifest says, or attempts failed for long.
        """
        done, failures, progress = 0, 0, time.monotonic()
        with part.open("r+b", buffering=0) as file:
            while done < size:
                try:
                    filesystem, folder = self._connect()
                    with filesystem.open_input_file(f"{folder}/{name}") as source:
                        if source.size() != size:
                            raise CacheError(
                                f"{self._location}/{name} has {source.size()} bytes; its manifest says {size}"
                            )
                        while done < size:
                            data = source.read_at(min(_CHUNK_BYTES, size - done), done)
                            file.write(data)
                            done += len(data)
                            failures, progress = 0, time.monotonic()
                except OSError as error:
                    failures += 1
                    if failures == _ATTEMPTS or time.monotonic() - progress > _PATIENCE_S:
                        raise CacheError(
                            f"{self._location}/{name} could not be fetched in {failures} attempts: {error}"
                        ) from error
                    logger.info(
                        "process %d: download of %s/%s broke at byte %d and continues there: %s",
                        os.getpid(),
                        self._location,
                        name,
                        done,
                        error,
                    )
                    time.sleep(_FIRST_PAUSE_S * 2 ** (failures - 1))

    def _connect(self) -> "tuple[fs.FileSystem, str]":
        """Return the remote file system and the folder in it; open the connection at the first call."""
        from sharding import open_filesystem  # imports pyarrow, which a reader of cached shards does without

        if self._source is None:
            self._source = open_filesystem(self._remote.location)
        return self._source


@contextlib.contextmanager
def locked(path: Path, flag: str = CACHE_DIR) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it when the process dies.

    Args:
        path: of the file, which is made if it does not exist.
        flag: flag that chooses its folder, for messages.

    Raises:
        CacheError: the file cannot be made, or its file system has no locks.
    """
    hint = f"choose a local folder with {flag}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CacheError(f"{path} cannot be made ({error.strerror}): make room, or {hint}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise CacheError(
                f"{path.parent} cannot be a cache: its files cannot be locked ({error}); {hint}"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> bool:
    """Remove a shard, or a part file that no process is downloading; return whether it is gone."""
    if not path.name.endswith(_PART):
        path.unlink(missing_ok=True)
        return True
    descriptor = os.open(path.with_name(path.name.removesuffix(_PART) + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
