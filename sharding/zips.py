"""Zip archives that are read in place, as a folder or member by member: nothing is extracted."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs

from sharding.errors import SourceError
from sharding.mistaken_files import describe_file
from sharding.storage import Folder

_IGNORED_TOP = "__MACOSX"
# The table of contents of an archive is in the memory of each worker, and so is a file while it is read.
_MOST_FILES = 400_000
_MOST_BYTES = 1 << 30
_LOCAL_HEADER = 30
"""Bytes of a member's own header, before its name and its extra field."""


def open_zip(location: str) -> Folder:
    """Open a zip archive as a folder; if all its files lie in one folder, open that.

    Args:
        location: path or URI of the archive.

    Raises:
        SourceError: the file is no zip archive, is damaged, or has too many files.
    """
    handler = _ZipHandler(location)
    top = {path.partition("/")[0] for path in handler.sizes} - {_IGNORED_TOP}
    only = top.pop() if len(top) == 1 else ""
    return Folder(location, fs.PyFileSystem(handler), only if only in handler.children else "")


class _ZipHandler(fs.FileSystemHandler):
    """The file system of a zip archive, read-only. A copy in another process opens the archive again.

    Attributes:
        sizes: size of each file in bytes, by its path.
        children: names in each folder, by the path of the folder.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        folder, name = Folder.of_file(location)
        try:
            self._zip = zipfile.ZipFile(folder.open_input(name))
        except (zipfile.BadZipFile, OSError) as error:
            what = describe_file(folder, name) or f"damaged or no zip archive: {error}. Fetch the file again."
            raise SourceError(f"{location} is {what}") from error
        if len(self._zip.filelist) > _MOST_FILES:
            raise SourceError(
                f"{location} has {len(self._zip.filelist):,} files; up to {_MOST_FILES:,} are read in place. "
                "Unpack it, and give the folder with --source."
            )
        self.sizes = {entry.filename: entry.file_size for entry in self._zip.infolist() if not entry.is_dir()}
        self.children: dict[str, set[str]] = {"": set()}
        for path in self.sizes:
            while path:
                path, _, name = path.rpartition("/")
                self.children.setdefault(path, set()).add(name)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return _ZipHandler, (self.location,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ZipHandler) and other.location == self.location

    def __hash__(self) -> int:
        return hash(self.location)

    def get_type_name(self) -> str:
        return "zip"

    def normalize_path(self, path: str) -> str:
        return path

    def _info(self, path: str) -> fs.FileInfo:
        plain = path.strip("/")
        if plain in self.sizes:
            return fs.FileInfo(path, fs.FileType.File, size=self.sizes[plain])
        return fs.FileInfo(path, fs.FileType.Directory if plain in self.children else fs.FileType.NotFound)

    def get_file_info(self, paths: Sequence[str]) -> list[fs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        found, waiting = [], [selector.base_dir]
        while waiting:
            folder = waiting.pop()
            infos = [self._info(f"{folder}/{name}") for name in self.children.get(folder.strip("/"), ())]
            found += infos
            if selector.recursive:
                waiting += [info.path for info in infos if info.type == fs.FileType.Directory]
        return found

    def open_input_file(self, path: str) -> pa.NativeFile:
        if self.sizes.get(path.strip("/"), 0) > _MOST_BYTES:
            raise OSError(f"{self.location} holds {path.strip('/')}, which is too large to be read there: unpack it")
        try:
            data = self._zip.read(path.strip("/"))
        except KeyError as error:
            raise FileNotFoundError(path) from error
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:  # encryption is a RuntimeError
            raise OSError(f"{self.location} is damaged or encrypted at {path.strip('/')}: {error}") from error
        return pa.BufferReader(data)

    open_input_stream = open_input_file

    def _refuse(self, *_: object, **__: object) -> Any:
        raise OSError(f"{self.location} is only read")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A member of a zip file: its name, and offset and size of its content in bytes."""

    name: str
    offset: int
    size: int


def list_members(root: Folder, archive: str) -> list[ZipMember]:
    """List the files in a zip whose members are stored as they are, as those of COCO's images are.

    Raises:
        SourceError: the zip cannot be read, or a member is compressed.
    """
    members = []
    try:
        with root.open_input(archive) as file, zipfile.ZipFile(file) as content:
            for info in content.infolist():
                if info.is_dir():
                    continue
                if info.compress_type != zipfile.ZIP_STORED:
                    raise SourceError(
                        f"{root.location}/{archive} holds {info.filename} compressed, so it cannot be read in place: "
                        "unpack the file, and give the folder"
                    )
                # The extra field of a member's own header may be longer than that of the directory.
                file.seek(info.header_offset)
                header = file.read(_LOCAL_HEADER)
                lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                offset = info.header_offset + _LOCAL_HEADER + lengths
                members.append(ZipMember(info.filename, offset, info.file_size))
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{root.location}/{archive} cannot be read: {error}. Fetch it again.") from error
    return members


def read_member(root: Folder, archive: str, name: str) -> bytes | None:
    """Return the content of a member of a zip, compressed or not; None if there is none of that name.

    Raises:
        SourceError: the zip cannot be read.
    """
    try:
        with root.open_input(archive) as file, zipfile.ZipFile(file) as content:
            return content.read(name) if name in content.namelist() else None
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{root.location}/{archive} cannot be read: {error}. Fetch it again.") from error
