"""A folder on any file system that `pyarrow.fs` opens, as a mirror uses it: files are put, listed, read and removed."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from pipeline.common.errors import PipelineError, one_line
from pipeline.common.secrets import mask_secrets
from sharding import ShardingError, open_filesystem

CHUNK_BYTES = 4 << 20
"""Bytes that are read, hashed and written at once."""


class MirrorError(PipelineError, ValueError):
    """A mirror that cannot be used; the message says why and what to do."""


class Place:
    """A folder that holds a mirror, opened when it is first used.

    Every method raises an `OSError` while the store is down, full or refuses, and a `MirrorError` if pyarrow opens no
    such location.
    """

    def __init__(self, location: str) -> None:
        """Keep a path or URI."""
        self._location = location
        self.shown = mask_secrets(location)
        """The location for messages, without secrets."""

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        try:
            return open_filesystem(self._location)
        except ShardingError as error:
            # pyarrow asks a store for the region of a bucket.
            if isinstance(error.__cause__, OSError):
                raise OSError(one_line(error)) from error
            raise MirrorError(f"{self.shown} cannot be opened as a mirror: {one_line(error)}") from error

    @property
    def _files(self) -> fs.FileSystem:
        return self._opened[0]

    def folders(self, name: str = "") -> list[str]:
        """Names of the folders in folder `name`, sorted; none where it does not exist."""
        selector = fs.FileSelector(self._path(name), allow_not_found=True)
        return sorted(i.base_name for i in self._files.get_file_info(selector) if i.type == fs.FileType.Directory)

    def files(self, name: str) -> list[str]:
        """Paths of all files below folder `name`, from there; none where it does not exist."""
        selector = fs.FileSelector(self._path(name), allow_not_found=True, recursive=True)
        prefix = self._path(name) + "/"
        infos = self._files.get_file_info(selector)
        return [info.path.removeprefix(prefix) for info in infos if info.type == fs.FileType.File]

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        with self._files.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file in parts."""
        with self._files.open_input_stream(self._path(name)) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk

    def put(self, name: str, content: bytes) -> None:
        """Write a small file: a reader sees the previous one or the new one, on a local disk too."""
        if not isinstance(self._files, fs.LocalFileSystem):
            self._write(name, iter([content]))
            return
        temporary = f"{name}.{uuid.uuid4().hex}"
        try:
            self._write(temporary, iter([content]))
            self._files.move(self._path(temporary), self._path(name))
        except OSError:
            with contextlib.suppress(OSError):
                self._files.delete_file(self._path(temporary))
            raise

    def upload(self, source: Path, name: str, between: Callable[[], None]) -> tuple[str, int]:
        """Copy a file; return its sha256 and its size, as they were read.

        Args:
            source: the file.
            name: name of the copy. It may be torn if the process dies.
            between: called between two parts.

        Raises:
            OSError: the store has kept another number of bytes than were written, or does not answer.
        """
        digest, size = hashlib.sha256(), 0

        def parts() -> Iterator[bytes]:
            nonlocal size
            with source.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                    yield chunk
                    between()

        self._write(name, parts())
        kept = self._files.get_file_info(self._path(name)).size
        if kept != size:
            raise OSError(f"{self.shown} has kept {kept} of {size} bytes of {name}")
        return digest.hexdigest(), size

    def remove(self, name: str) -> None:
        """Remove a folder and all in it; no error if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_dir(self._path(name))

    def _write(self, name: str, parts: Iterator[bytes]) -> None:
        path = self._path(name)
        if isinstance(self._files, fs.LocalFileSystem):
            if not os.path.exists(self._path("")):
                os.makedirs(self._path(""), mode=0o700, exist_ok=True)
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
        with self._files.open_output_stream(path) as stream:
            for part in parts:
                stream.write(part)

    def _path(self, name: str) -> str:
        root = self._opened[1]
        return f"{root}/{name}" if name else root


def child_location(location: str, name: str) -> str:
    """Return the location of the folder `name` in a location, whose query, if any, stays."""
    head, mark, query = location.partition("?") if "://" in location else (location, "", "")
    return f"{head.rstrip('/')}/{name}{mark}{query}"
