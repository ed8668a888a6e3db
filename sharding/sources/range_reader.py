"""Read byte ranges of a source's files from several threads: by `pread` locally, by ranged requests remotely."""

from __future__ import annotations

import os
import threading
from typing import Any

from sharding.object_store import explained
from sharding.storage import Folder

_OPEN_FILES = 64


class RangeReader:
    """Reads byte ranges of files in a folder; keeps up to 64 files open; thread-safe."""

    def __init__(self, root: Folder) -> None:
        self.root = root
        self._open: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self._close(name)

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Read the bytes [offset, offset + size) of a file, fewer at its end.

        Raises:
            OSError: the file cannot be read.
        """
        handle = self._handle(name)
        if not self.root.is_local:
            with explained(f"{self.root.location}/{name}"):
                return handle.read_at(size, offset)
        return _read_fully(handle, offset, size)

    def prefetch(self, name: str, offset: int, size: int) -> None:
        """Ask the operating system to fetch a range of a local file in the background."""
        os.posix_fadvise(self._handle(name), offset, size, os.POSIX_FADV_WILLNEED)

    def read_file(self, name: str, size: int) -> bytes:
        """Read a whole file without keeping it open.

        Args:
            name: path of the file inside the folder.
            size: size that the file should have; one byte more is read, so that the result shows if it has grown.

        Raises:
            OSError: the file cannot be read.
        """
        if self.root.is_local:
            descriptor = os.open(self.root.join(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _read_fully(descriptor, 0, size + 1)
            finally:
                os.close(descriptor)
        with (
            explained(f"{self.root.location}/{name}"),
            self.root.filesystem.open_input_stream(self.root.join(name)) as stream,
        ):
            return stream.read()

    def _handle(self, name: str) -> Any:
        with self._lock:
            if name not in self._open:
                while len(self._open) >= _OPEN_FILES:
                    self._close(next(iter(self._open)))
                path = self.root.join(name)
                if self.root.is_local:
                    self._open[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                else:
                    self._open[name] = self.root.filesystem.open_input_file(path)
            return self._open[name]

    def _close(self, name: str) -> None:
        handle = self._open.pop(name)
        os.close(handle) if self.root.is_local else handle.close()


def _read_fully(descriptor: int, offset: int, size: int) -> bytes:
    """Read like `pread`, but fewer bytes only at the end of the file."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # at the end, after a signal, or on a file system that returns less at a time
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
