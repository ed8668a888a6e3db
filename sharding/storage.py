"""Folders on any file system that `pyarrow.fs` opens; a file is published complete or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from pyarrow import fs

from sharding.errors import OutputError, ShardingError
from sharding.object_store import bounded

_STREAM_BUFFER = 4 << 20  # bytes per ranged request
_HASH_CHUNK = 4 << 20
_MAX_BUFFERS = 512  # per writev; IOV_MAX is 1024 on Linux


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """Open a path or URI.

    Args:
        location: a local path, absolute or relative to the current folder, or a URI such as
            `s3://bucket/folder?endpoint_override=localhost:9000&scheme=http`.

    Returns:
        The file system and the path inside it.

    Raises:
        ShardingError: pyarrow cannot open such a URI.
    """
    if "://" not in location:
        location = os.path.abspath(os.path.expanduser(location))
    try:
        location.encode()
    except UnicodeEncodeError as error:
        raise ShardingError(f"the path {location!r} is not UTF-8. Rename it, or give a symbolic link to it.") from error
    if "://" not in location:
        return fs.LocalFileSystem(), location
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise ShardingError(f"{location!r} cannot be opened as a folder: {error}") from error
    return bounded(filesystem), path.rstrip("/")


class Sink(Protocol):
    """A file open for writing."""

    def write_all(self, buffers: Sequence[bytes]) -> None:
        """Append all bytes of all buffers."""
        ...


class _LocalSink:
    """A local file written with `writev`, so that Python never copies large buffers."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write_all(self, buffers: Sequence[bytes]) -> None:
        for start in range(0, len(buffers), _MAX_BUFFERS):
            views = [memoryview(buffer) for buffer in buffers[start : start + _MAX_BUFFERS]]
            while views:
                written = os.writev(self.descriptor, views)
                while views and written >= len(views[0]):
                    written -= len(views[0])
                    views.pop(0)
                if written:
                    views[0] = views[0][written:]

    def finish(self) -> None:
        os.fsync(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


class _RemoteSink:
    """An output stream of a remote file system."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self.stream: Any = filesystem.open_output_stream(path)

    def write_all(self, buffers: Sequence[bytes]) -> None:
        for buffer in buffers:
            self.stream.write(buffer)

    def finish(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


@dataclass(frozen=True)
class Folder:
    """A folder on a file system; cheap to create and to send to another process.

    Attributes:
        location: path or URI as the user wrote it, for messages.
        filesystem: the file system that contains the folder.
        path: path of the folder inside `filesystem`.
    """

    location: str
    filesystem: fs.FileSystem
    path: str

    @classmethod
    def open(cls, location: str) -> Folder:
        """Open a path or URI; creates nothing and checks nothing."""
        filesystem, path = open_filesystem(location)
        return cls(location, filesystem, path)

    @classmethod
    def of_file(cls, location: str) -> tuple[Folder, str]:
        """The folder that contains a file, and the name of the file in it."""
        whole = cls.open(location)
        path, _, name = whole.path.rpartition("/")
        head, mark, query = location.partition("?") if "://" in location else (location, "", "")
        return cls((os.path.dirname(head.rstrip("/")) or ".") + mark + query, whole.filesystem, path), name

    @property
    def is_local(self) -> bool:
        """Whether the folder is on the local file system."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def join(self, name: str) -> str:
        """Path inside `filesystem` of the file `name`."""
        return f"{self.path}/{name}"

    def folder(self, name: str) -> Folder:
        """The folder `name` inside this one."""
        return Folder(f"{self.location.split('?')[0].rstrip('/')}/{name}", self.filesystem, self.join(name))

    def size(self, name: str) -> int | None:
        """Size of the file `name` in bytes; None where there is no such file."""
        info = self.filesystem.get_file_info(self.join(name))
        return info.size if info.type == fs.FileType.File else None

    def list(self, *, recursive: bool = False) -> list[fs.FileInfo]:
        """List the content, sorted by path; empty where the folder does not exist.

        Raises:
            ShardingError: a name is not UTF-8.
        """
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        try:
            return sorted(self.filesystem.get_file_info(selector), key=lambda info: info.path)
        except UnicodeDecodeError as error:
            raise ShardingError(
                f"{self.location} holds a name that is not UTF-8, {error.object!r}. Rename it."
            ) from error

    def names(self) -> list[str]:
        """Names of the files (not folders) directly inside, sorted."""
        return [info.base_name for info in self.list() if info.type == fs.FileType.File]

    def exists(self) -> bool:
        """Whether the folder exists."""
        return self.filesystem.get_file_info(self.path).type == fs.FileType.Directory

    def create(self) -> None:
        """Create the folder and its parents.

        Raises:
            OutputError: the folder cannot be created.
        """
        try:
            self.filesystem.create_dir(self.path, recursive=True)
        except OSError as error:
            raise OutputError(f"{self.location} cannot be written: {error}. Choose another --output.") from error

    def open_input(self, name: str) -> IO[bytes]:
        """Open a file for reading at any position."""
        path = self.join(name)
        return open(path, "rb") if self.is_local else self.filesystem.open_input_file(path)

    def open_stream(self, name: str) -> IO[bytes]:
        """Open a file for reading from its beginning to its end."""
        path = self.join(name)
        return (
            open(path, "rb") if self.is_local else self.filesystem.open_input_stream(path, buffer_size=_STREAM_BUFFER)
        )

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        with self.open_input(name) as stream:
            return stream.read()

    def sha256(self, name: str) -> str:
        """SHA-256 of a file in hex."""
        digest = hashlib.sha256()
        with self.open_input(name) as stream:
            while chunk := stream.read(_HASH_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self, name: str) -> None:
        """Remove a file; no error if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.join(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder and its content as far as possible: on NFS a file that is open elsewhere stays."""
        with contextlib.suppress(OSError):
            self.filesystem.delete_dir(self.join(name))

    @contextlib.contextmanager
    def publish(self, name: str, *, temporary_folder: Folder | None = None, durable: bool = True) -> Iterator[Sink]:
        """Write the file `name` so that it appears complete or not at all.

        The bytes go to a temporary file with a unique name, which is renamed once all of them are on disk. An exception
        removes the temporary file.

        Args:
            name: name of the file in this folder.
            temporary_folder: folder for the temporary file; by default this folder.
            durable: wait until the bytes are on disk. Without it, a power cut may leave an incomplete file.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        temporary = (temporary_folder or self).join(f".{name}.{uuid.uuid4().hex}.tmp")
        sink: _LocalSink | _RemoteSink | None = None
        try:
            sink = _LocalSink(temporary) if self.is_local else _RemoteSink(self.filesystem, temporary)
            yield sink
            if durable:
                sink.finish()
            sink.close()
            if self.is_local:
                os.replace(temporary, self.join(name))
                if durable:
                    _fsync_folder(self.path)
            else:
                self.filesystem.move(temporary, self.join(name))
        except BaseException as error:
            if sink is not None:
                with contextlib.suppress(OSError):
                    sink.close()
            with contextlib.suppress(OSError):
                self.filesystem.delete_file(temporary)
            if isinstance(error, OSError):
                raise OutputError(_explain(error, f"{self.location}/{name}")) from error
            raise

    def write(self, name: str, content: bytes, *, temporary_folder: Folder | None = None, durable: bool = True) -> None:
        """Publish a small file.

        Raises:
            OutputError: see `publish`.
        """
        with self.publish(name, temporary_folder=temporary_folder, durable=durable) as sink:
            sink.write_all([content])

    def write_if_absent(self, name: str, content: bytes) -> bytes:
        """Publish a small file unless it exists.

        Returns:
            The content of the file afterwards: `content`, or what another process has written.

        Raises:
            OutputError: see `publish`.
        """
        if self.size(name) is None:
            unique_name = f"{name}.{uuid.uuid4().hex}"
            self.write(unique_name, content)
            try:
                if self.is_local:
                    os.link(self.join(unique_name), self.join(name))  # fails where `name` exists
                else:
                    self.filesystem.copy_file(self.join(unique_name), self.join(name))
            except FileExistsError:
                pass
            except OSError as error:
                raise OutputError(_explain(error, f"{self.location}/{name}")) from error
            finally:
                self.remove(unique_name)
        return self.read(name)


def _fsync_folder(path: str) -> None:
    """Make renames inside the folder durable, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: OSError, target: str) -> str:
    return (
        f"{target} could not be written: {error.strerror or error}. No part of it was published. "
        "Free some space or choose another --output, then give the same command again: finished shards are kept."
    )
