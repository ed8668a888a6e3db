"""Remote shards kept whole in a local folder that the processes of a node share, within a bound.

Safe by construction, without a server: a shard appears under its name by a rename, whole; who fetches it holds a file
lock, which the kernel drops with the process; making room and reserving it is done under one lock; and a reader keeps
what it has open, even when it is removed to make room. So several ranks, workers and jobs use one folder, and kill -9
leaves at most a part file, which the next process that needs room removes.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow import fs


logger = logging.getLogger(__name__)
_CHUNK_BYTES = 8 << 20
_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.2
_ROOM_PAUSE_S = 0.05
_PART = ".part"


class CacheError(RuntimeError):
    """A shard could not be fetched, or there is no room for it."""


@dataclass(frozen=True)
class RemoteShards:
    """Where the shards of a split lie; small and picklable.

    Attributes:
        location: URI of the folder.
        digest: of the manifest; two versions of a split never share a file.
        sizes: bytes of each shard.
        folder: local folder of the cache.
        limit: bytes that the shards in it may take together.
    """

    location: str
    digest: str
    sizes: dict[str, int]
    folder: str
    limit: int


class ShardCache:
    """Opens shards of one remote folder through the node's cache."""

    def __init__(self, remote: RemoteShards) -> None:
        """Prepare; nothing is fetched or connected yet."""
        self._remote = remote
        self._folder = Path(remote.folder)
        self._shown = remote.location.split("?")[0]
        self._prefix = f"shard-{remote.digest[:16]}-"
        self._source: tuple[fs.FileSystem, str] | None = None

    def open(self, name: str) -> int:
        """A descriptor for reading a shard, fetched first if it is not there.

        Raises:
            CacheError: it cannot be fetched, or does not fit into the cache.
        """
        path = self._path(name)
        while True:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self.touch(descriptor)
                return descriptor
            self.fetch(name)

    def touch(self, descriptor: int) -> None:
        """Say that a shard is in use: the one that was not used for longest makes room first."""
        os.utime(descriptor)

    def fetch(self, name: str) -> None:
        """Bring a shard into the cache if it is not there; waits for another process that does so.

        Raises:
            CacheError: as `open`.
        """
        path, size = self._path(name), self._remote.sizes[name]
        with locked(path.with_name(f".{path.name}.lock")):
            if path.exists():
                return
            part = path.with_name(f".{path.name}{_PART}")
            part.unlink(missing_ok=True)
            self._reserve(part, size)
            try:
                self._download(name, part, size)
                # Who counts the folder's files meanwhile could meet it under neither name.
                with self._room():
                    os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._prefix}{name}"

    def _room(self) -> contextlib.AbstractContextManager[None]:
        """Held by who counts what is in the folder, and by who changes more than to remove from it."""
        return locked(self._folder / ".room.lock")

    def _reserve(self, part: Path, size: int) -> None:
        """Make room and take it; waits while what is being fetched, by others too, takes all the room there is."""
        if size > self._remote.limit:
            raise CacheError(
                f"no room for a shard of {size / 1e9:.2f} GB in {self._folder}: its bound is "
                f"{self._remote.limit / 1e9:.2f} GB; raise --train.data.cache-gb"
            )
        while not self._try_to_reserve(part, size):
            time.sleep(_ROOM_PAUSE_S)

    def _try_to_reserve(self, part: Path, size: int) -> bool:
        """Make room and take it, so that those who reserve at the same time do not count on the same room."""
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
                    f"{self._folder} has no room for a shard of {size / 1e9:.2f} GB ({error.strerror}): "
                    "make room, lower --train.data.cache-gb, or choose another --train.data.cache-dir"
                ) from error
            return True

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, bytes and path of every shard and part in the folder, of whatever data set."""
        for path in self._folder.iterdir():
            if path.name.startswith("shard-") or path.name.endswith(_PART):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path

    def _download(self, name: str, part: Path, size: int) -> None:
        """Copy a shard, going on where a connection broke."""
        done, failures = 0, 0
        with part.open("r+b", buffering=0) as file:
            while done < size:
                try:
                    filesystem, folder = self._connect()
                    with filesystem.open_input_file(f"{folder}/{name}") as source:
                        if source.size() != size:
                            raise CacheError(
                                f"{self._shown}/{name} has {source.size()} bytes; its manifest says {size}"
                            )
                        while done < size:
                            data = source.read_at(min(_CHUNK_BYTES, size - done), done)
                            file.write(data)
                            done += len(data)
                            failures = 0
                except OSError as error:
                    failures += 1
                    if failures == _ATTEMPTS:
                        raise CacheError(
                            f"{self._shown}/{name} could not be fetched in {_ATTEMPTS} attempts: {error}"
                        ) from error
                    logger.info("fetching %s again from byte %d: %s", name, done, error)
                    time.sleep(_FIRST_PAUSE_S * 2 ** (failures - 1))

    def _connect(self) -> "tuple[fs.FileSystem, str]":
        from sharding import open_filesystem

        if self._source is None:
            self._source = open_filesystem(self._remote.location)
        return self._source


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock; the kernel drops it with the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> bool:
    """Remove a shard, or a part that nobody is fetching; whether it is gone."""
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
