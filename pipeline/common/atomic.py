"""Files that a crash cannot leave half written: a temporary file beside the path, then a rename."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file beside `path`, which the body writes and which then replaces `path`.

    A reader sees the previous file or the new one, never a part of it. If the body raises, the temporary file is
    removed and `path` stays as it was.

    Args:
        path: file to write or to replace.
        durable: fsync the file before the rename and its folder after it, so that a power failure loses neither.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if durable:
            fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync(path.parent)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file by `replacing`, as UTF-8; the bytes of a path that is none are written as they are."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, content: Any, *, durable: bool = False) -> None:
    """Write a JSON file by `replacing`: indented by one space, with a newline at its end."""
    write_text(path, json.dumps(content, indent=1) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the object in a JSON file; None if the file is missing or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def fsync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
