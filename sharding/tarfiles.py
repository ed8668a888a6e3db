"""Tar archives: write USTAR headers fast, and iterate over the members of an archive by position.

Members are never extracted: the name of a member is only text, never a path to write to.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sharding.errors import SourceError
from sharding.mistaken_files import describe_text

BLOCK = 512
_RECORD = 20 * BLOCK  # tar's record size, unless its option `-b` sets another
_LONGEST_RECORD = 1 << 20
_LONGEST_HEADER = 1 << 20
MAX_NAME = 100  # bytes of a name in a USTAR header without a prefix
END = bytes(2 * BLOCK)
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
# Folders, also of GNU tar's incremental archives, and GNU tar's name of the whole archive.
_WITHOUT_FILE = (tarfile.DIRTYPE, b"D", b"V")
_REFUSED = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}
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
    """A file in an archive.

    Attributes:
        name: its name in the archive.
        offset: position of its first byte in the file that is read; of a hard link, the position of its target's.
        size: its size in bytes.
    """

    name: str
    offset: int
    size: int


def iter_members(read_at: Callable[[int, int], bytes], start: int, end: int, archive: str) -> Iterator[Member]:
    """Iterate over the files in the tar archive that occupies the bytes [start, end) of a file.

    A hard link, which tar makes of a repeated file, is a file with the bytes of its target. Folders have no bytes and
    are skipped. All other members are refused, because they would be missing from the result.

    Args:
        read_at: `read_at(offset, size)` returns the bytes at a position, fewer at the end of the file.
        start: position of the first byte of the archive.
        end: position after its last byte.
        archive: name of the archive, for messages.

    Raises:
        SourceError: the archive is truncated, damaged or no tar, or holds a member that is no file.
    """
    position = start
    files: dict[str, Member] = {}
    extended: dict[str, str] = {}  # values for the next member, by the keyword of a pax header
    last = "its start"  # the last member read, for messages
    while True:
        block = read_at(position, BLOCK)
        if position == start and (mistaken := describe_text(block)):
            raise SourceError(f"{archive} is {mistaken}")
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
        plain = _plain_file(block) if not extended else None
        if plain is not None and position + BLOCK + plain[1] <= end:
            last, size = plain
            files[last] = member = Member(last, position + BLOCK, size)
            yield member
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
        if info.type == tarfile.LNKTYPE:
            info.size = 0  # some software writes the size of the target, whose bytes do not follow
        elif extended.get("size", "").isdecimal() and info.type not in _EXTENDED:
            info.size = int(extended["size"][:20])
        position = content + info.size + -info.size % BLOCK
        if content + info.size > end:
            raise SourceError(
                f"{archive} is truncated: {info.name} needs {info.size:,} bytes, "
                f"{max(0, end - content):,} are left. Fetch it again."
            )
        if info.type in _EXTENDED:
            where = f"{archive} is damaged: the extended header after {last}"
            if info.size > _LONGEST_HEADER:
                raise SourceError(f"{where} has {info.size:,} bytes, more than the {_LONGEST_HEADER:,} allowed")
            records = read_at(content, info.size)
            if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                keyword = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                extended[keyword] = records.rstrip(b"\0").decode("utf-8", _NOT_UTF8)
            else:
                extended |= _pax_records(records, where)
            continue
        name = extended.get("path", info.name)
        target = extended.get("linkpath", info.linkname)
        is_sparse = any(keyword.startswith("GNU.sparse.") for keyword in extended)
        name = extended.get("GNU.sparse.name", name)
        extended = {}
        if info.type in _WITHOUT_FILE or (info.type in _FILES and name.endswith("/")):
            continue
        last = name
        if info.type == tarfile.LNKTYPE:
            found = _find_file(files, target)
            if found is None:
                raise SourceError(f"{archive}: {name} is a hard link to {target!r}, which is not before it")
            member = Member(name, found.offset, found.size)
        elif info.type not in _FILES or is_sparse:
            kind = "a sparse file" if is_sparse else _REFUSED.get(info.type, f"of the unknown type {info.type!r}")
            raise SourceError(
                f"{archive}: {name} is {kind}, whose content is not in one piece in the archive. Pack the files "
                "themselves: tar --dereference, without --sparse."
            )
        else:
            member = Member(name, content, info.size)
        files[name] = member
        yield member


def _find_file(files: dict[str, Member], target: str) -> Member | None:
    """Find the file to which a hard link points: its name may differ in parts such as `./`."""
    if target in files:
        return files[target]
    path = posixpath.normpath(target)
    return next((files[name] for name in reversed(files) if posixpath.normpath(name) == path), None)


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


def _pax_records(content: bytes, where: str) -> dict[str, str]:
    """Read the records of a pax header: values by keyword.

    Args:
        content: content of the header.
        where: beginning of messages.

    Raises:
        SourceError: a record does not begin with its length.
    """
    records = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not len(length) < int(length[:20]) <= len(content):
            raise SourceError(f"{where} holds a record of length {length[:20]!r}")
        record, content = content[: int(length)], content[int(length) :]
        keyword, _, value = record[len(length) + 1 :].partition(b"=")
        text = value.removesuffix(b"\n").decode("utf-8", _NOT_UTF8)
        records[keyword.decode("utf-8", _NOT_UTF8)] = text
    return records
