"""Images in a zip file, read in place: where the bytes of each stored member are."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

from sharding.errors import SourceError
from sharding.storage import Folder

__all__ = ["ZipMember", "list_members", "read_member"]

_LOCAL_HEADER = 30
"""Bytes of a member's own header, before its name and its extra field."""


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
