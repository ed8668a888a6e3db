"""Small files: written so that a crash cannot leave them half written, and read where they may not be there yet."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none, or it is no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_durably(path: Path, text: str) -> None:
    """Write a small file aside, fsync, rename: a reader sees the old text or the new, never a part."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Make the renames within a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
