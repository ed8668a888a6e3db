"""The hidden folder in which a build keeps its state until the manifest is published."""

from __future__ import annotations

from sharding.errors import ManifestError
from sharding.storage import Folder

SETTINGS_FILE = "settings.json"


def work_folder(output: Folder, stem: str) -> Folder:
    """The work folder of the split NAME-SPLIT: settings, records of finished shards, temporary files."""
    return output.folder(f".{stem}.parts")


def is_unfinished(output: Folder, stem: str) -> bool:
    """Whether a build of the split NAME-SPLIT has begun in a folder and has not finished."""
    return work_folder(output, stem).size(SETTINGS_FILE) is not None


def refuse_unfinished(output: Folder, stem: str) -> None:
    """Refuse to read a split whose build has not finished.

    Raises:
        ManifestError: the build of NAME-SPLIT is unfinished.
    """
    if is_unfinished(output, stem):
        raise ManifestError(
            f"{output.location!r} holds an unfinished build of {stem}: samples may be missing. Give the same build "
            "command again (python -m sharding.build): it resumes."
        )
