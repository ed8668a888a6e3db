"""Recognise what people have in place of an image or an archive: a pointer of Git LFS, a web page, an error message."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharding.storage import Folder

_BEGINNING = 512


def describe_text(data: bytes) -> str | None:
    """Say what a file is that should be an image or an archive, and what to do; None if it is nothing known.

    Args:
        data: the file, or its first bytes.
    """
    beginning = data[:_BEGINNING].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if beginning.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a pointer of Git LFS, not the file itself. Fetch the files: git lfs pull"
    if beginning.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML), such as the page of an error or of a login. Fetch the file again."
    if beginning.startswith((b"<?xml", b"<error>")) and b"<svg" not in beginning:
        return "an XML document, such as the error message of an object store. Fetch the file again."
    if beginning.startswith((b"<?xml", b"<svg")):
        return "an SVG drawing, which has no pixels"
    return None


def describe_file(folder: Folder, name: str) -> str | None:
    """Say what a file is as `describe_text` does, by its first bytes; None also if it cannot be read."""
    try:
        with folder.open_stream(name) as stream:
            return describe_text(stream.read(_BEGINNING))
    except OSError:
        return None
