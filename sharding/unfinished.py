"""Where a build keeps what it knows until the manifest is published."""

from __future__ import annotations

from sharding.storage import Folder

SETTINGS = "settings.json"


def parts_folder(output: Folder, stem: str) -> Folder:
    """The folder of the settings and records of an unfinished build of the split NAME-SPLIT, and of what it writes."""
    return output.folder(f".{stem}.parts")


def is_unfinished(output: Folder, stem: str) -> bool:
    """Whether a build of the split NAME-SPLIT was begun in a folder and has not ended."""
    return parts_folder(output, stem).size(SETTINGS) is not None
