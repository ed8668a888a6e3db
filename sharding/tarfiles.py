"""Tar archives: write USTAR headers fast, and iterate over the members of an archive by position.

Members are never extracted: the name of a member is only text, never a path to write to.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sharding.errors import SourceError

BLOCK = 512
_RECORD = 20 * BLOCK  # tar's record size, unless its option `-b` sets another
_LONGEST_RECORD = 1 << 20
_LONGEST_HEADER = 1 << 20
MAX_NAME = 100  # bytes of a name in a USTAR header without a prefix
END = bytes(2 * BLOCK)
_NOT_UTF8 = "backslashreplace"  # error handler for names: they appear in keys, messages and the index


def _template() -> bytes:
    member = tarfile.TarInfo("")
    member.mode = 0o444
    member.uname = member.gname = "bigdata"
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = bytes(12)
    header[148:156] = b" " * 8
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)
_MIDDLE = _TEMPLATE[MAX_NAME:124]
_MTIME = _TEMPLATE[136:148]
_TAIL = _TEMPLATE[156:]


def header(name: bytes, size: int) -> bytes:
    """Make the USTAR header of a regular file with mode 0444 and mtime 0.

    Args:
        name: name of the member, at most 100 bytes of ASCII.
        size: bytes of content, under 8 GiB.
    """
    octal = b"%011o\0" % size
    checksum = _TEMPLATE_SUM + sum(name) + sum(octal)
    return b"".join((name.ljust(MAX_NAME, b"\0"), _MIDDLE, octal, _MTIME, b"%06o\0 " % checksum, _TAIL))


def padding(size: int) -> bytes:
    """The zeros that fill content of `size` bytes up to a whole number of blocks."""
    return bytes(-size % BLOCK)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive.

    Attributes:
        name: its name in the archive.
        offset: position of its first byte in the file that is read.
        size: its size in bytes.
    """

    name: str
    offset: int
    size: int


def iter_members(read_at: Callable[[int, int], bytes], start: int, end: int, archive: str) -> Iterator[Member]:
    """Iterate over the regular files in the tar archive that occupies the bytes [start, end) of a file.

    Args:
        read_at: `read_at(offset, size)` returns the bytes at a position, fewer at the end of the file.
        start: position of the first byte of the archive.
        end: position after its last byte.
        archive: name of the archive, for messages.

    Raises:
        SourceError: the archive is truncated, damaged or no tar.
    """
    position = start
    long_name: str | None = None
    last = "its start"  # the last member read, for messages
    while True:
        block = read_at(position, BLOCK)
        if position + BLOCK > end or len(block) < BLOCK:
            raise SourceError(
                f"{archive} is truncated: it ends at byte {end - start:,} without an end mark, after {last}. "
                "Fetch it again."
            )
        if not any(block):
            _check_end(
                read_at, start, position, end, f"{archive} is truncated: at byte {position - start:,}, after {last}"
            )
            return
        plain = _plain_file(block) if long_name is None else None
        if plain is not None and position + BLOCK + plain[1] <= end:
            last, size = plain
            yield Member(last, position + BLOCK, size)
            position += BLOCK + size + -size % BLOCK
            continue
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", _NOT_UTF8)
        except tarfile.HeaderError as error:
            raise SourceError(
                f"{archive} is damaged or no tar at byte {position - start:,} ({error}), after {last}"
            ) from error
        content = position + BLOCK
        if info.size < 0:
            raise SourceError(f"{archive} is damaged at byte {position - start:,} (a size below 0), after {last}")
        position = content + info.size + -info.size % BLOCK
        if content + info.size > end:
            raise SourceError(
                f"{archive} is truncated: {info.name} needs {info.size:,} bytes, "
                f"{max(0, end - content):,} are left. Fetch it again."
            )
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
            where = f"{archive} is damaged: the extended header after {last}"
            if info.size > _LONGEST_HEADER:
                raise SourceError(f"{where} has {info.size:,} bytes, more than the {_LONGEST_HEADER:,} allowed")
            records = read_at(content, info.size)
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = records.rstrip(b"\0").decode("utf-8", _NOT_UTF8)
            else:
                long_name = _pax_path(records, where) or long_name
            continue
        name, long_name = long_name or info.name, None
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not name.endswith("/"):
            last = name
            yield Member(name, content, info.size)


def _check_end(read_at: Callable[[int, int], bytes], start: int, position: int, end: int, where: str) -> None:
    """Tell the end mark of an archive from a hole: where a copy was interrupted, zeros may stand in place of content.

    tar pads an archive with zeros to a whole number of records: of 10 KiB, or of a larger size that divides the
    archive's.

    Raises:
        SourceError: bytes other than zero follow, or more zeros than tar pads with.
    """
    zeros = end - position
    record = max(_RECORD, 1 << max(0, zeros - 2 * BLOCK - 1).bit_length())
    is_padding = zeros <= _RECORD + 2 * BLOCK or (record <= _LONGEST_RECORD and (end - start) % record == 0)
    if not is_padding or any(read_at(position + BLOCK, zeros - BLOCK)):
        raise SourceError(
            f"{where}, it has zeros instead of its content, {zeros:,} bytes before its end. Fetch it again."
        )


def _plain_file(block: bytes) -> tuple[str, int] | None:
    """Parse name and size of a regular file from a plain USTAR header; three times as fast as `tarfile`.

    Returns:
        Name and size in bytes; None for any other header, which `tarfile` then parses.
    """
    if block[156] not in b"0\0" or block[345] or block[124] & 0x80 or not block[0]:
        return None
    try:
        checksum = int(block[148:156].strip(b" \0"), 8)
        size = int(block[124:136].strip(b" \0"), 8)
        name = block[:MAX_NAME].partition(b"\0")[0].decode()
    except ValueError:
        return None
    if size < 0 or checksum != sum(block) - sum(block[148:156]) + 8 * ord(" ") or name.endswith("/"):
        return None
    return name, size


def _pax_path(records: bytes, where: str) -> str | None:
    """Read the `path` record of a pax header; None where there is none.

    Raises:
        SourceError: a record does not begin with its length.
    """
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or not len(length) < int(length[:20]) <= len(records):
            raise SourceError(f"{where} holds a record of length {length[:20]!r}")
        record, records = records[: int(length)], records[int(length) :]
        keyword, _, value = record[len(length) + 1 :].partition(b"=")
        if keyword == b"path":
            return value.rstrip(b"\n").decode("utf-8", _NOT_UTF8)
    return None
