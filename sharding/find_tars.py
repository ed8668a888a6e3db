"""The tars of other software in a folder: which belong to which split, and whether all of them are there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sharding.errors import ManifestError
from sharding.manifest import SHARD_NAME
from sharding.storage import Folder

# imagenet-train-00000-of-00002.tar, or train-00000-of-00002.tar
_COUNTED = re.compile(
    r"^(?:(?P<name>.+)-)?(?P<split>[A-Za-z][A-Za-z0-9_]*)-(?P<number>[0-9]+)-of-(?P<count>[0-9]+)\.tar$"
)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSIONS = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_LISTED = 10


@dataclass
class TarSet:
    """The tars of one split.

    Attributes:
        files: file name by number.
        count: number of tars that the names state, as in `-of-00002`; None where they state none.
    """

    files: dict[int, str] = field(default_factory=dict)
    count: int | None = None

    def ordered(self) -> list[str]:
        """The file names in the order of their numbers."""
        return [self.files[number] for number in sorted(self.files)]

    @property
    def begins_at_one(self) -> bool:
        """Whether the first tar has the number 1, and none the number 0."""
        return min(self.files) == 1

    def missing(self) -> list[int]:
        """The numbers that are missing between the first, which is 0 or 1, and the last."""
        first = 1 if self.begins_at_one else 0
        last = max(self.files) if self.count is None else max(first + self.count - 1, max(self.files))
        return sorted(set(range(first, last + 1)) - set(self.files))


def find_tars(folder: Folder, name: str | None, split: str | None) -> dict[tuple[str, str], TarSet]:
    """Find the tars named NAME-SPLIT-NUMBER.tar, or SPLIT-NUMBER-of-COUNT.tar, by (name, split).

    Args:
        folder: folder of the tars.
        name: the only name to look for; tars without a name get it; None finds all.
        split: the only split to look for; None finds all.

    Raises:
        ManifestError: there are none, two have the same number, numbers are missing, or tars are compressed.
    """
    found: dict[tuple[str, str], TarSet] = {}
    files = folder.names()
    for file in files:
        match = _COUNTED.match(file) or SHARD_NAME.match(file)
        if match is None:
            continue
        own_name = match["name"] or name or _name_of_folder(folder)
        if name not in (None, own_name) or split not in (None, match["split"]):
            continue
        tars = found.setdefault((own_name, match["split"]), TarSet())
        other = tars.files.setdefault(int(match["number"]), file)
        if other != file:
            raise ManifestError(f"{folder.location!r}: {other} and {file} have the same number. Remove one of them.")
        if match.re is _COUNTED:
            tars.count = int(match["count"])
    if not found:
        raise ManifestError(_none_found(folder, files, name, split))
    for (own_name, own_split), tars in found.items():
        _refuse_gaps(folder, f"{own_name}-{own_split}", tars)
        _refuse_compressed(folder, tars)
    return found


def _refuse_gaps(folder: Folder, stem: str, tars: TarSet) -> None:
    missing = tars.missing()
    if missing:
        more = f" and {len(missing) - _LISTED:,} more" if len(missing) > _LISTED else ""
        raise ManifestError(
            f"{folder.location!r}: of {stem} the numbers {', '.join(map(str, missing[:_LISTED]))}{more} are missing. "
            "Fetch them."
        )


def _refuse_compressed(folder: Folder, tars: TarSet) -> None:
    """Refuse compressed tars: an image in them has no position at which it could be read."""
    for file in tars.ordered():
        with folder.open_input(file) as stream:
            start = stream.read(6)
        program = next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)
        if program is not None:
            raise ManifestError(
                f"{folder.location}/{file} is a compressed tar, in which no image can be read alone. Decompress all "
                f"such tars first: {program} < {file} > NEW.tar"
            )


def _none_found(folder: Folder, files: list[str], name: str | None, split: str | None) -> str:
    compressed = [file for file in files if file.endswith(_COMPRESSED)]
    if compressed:
        return (
            f"{folder.location!r} holds compressed tars, such as {compressed[0]}, in which no image can be read alone. "
            "Decompress them first (gunzip, or unzstd, …)."
        )
    others = [file for file in files if file.endswith(".tar")]
    return (
        f"{folder.location!r} holds no tars named NAME-SPLIT-NUMBER.tar, such as imagenet1k-train-0000.tar"
        + (f", with split {split!r}" if split else "")
        + (f", with name {name!r}" if name else "")
        + (f"; rename those there, such as {others[0]}" if others else "")
    )


def _name_of_folder(folder: Folder) -> str:
    """A name for tars whose names have none: that of their folder."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", folder.path.rpartition("/")[2]) or "shards"
