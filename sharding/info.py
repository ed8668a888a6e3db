"""`_info.json`, the description of all splits of a folder that timm's `wds` reader needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sharding.storage import Folder

INFO_FILE = "_info.json"
_FIELDS = ("name", "num_samples", "filenames", "shard_lengths")


class SplitInfo(NamedTuple):
    """What `_info.json` tells of a split: its prefix, its name, and the samples of each shard by file name."""

    name: str
    split: str
    samples: dict[str, int]


def info_content(folder: Folder, published: Sequence[SplitInfo]) -> bytes:
    """The content of `_info.json` for the published splits of a folder.

    Fields and splits that other software wrote into the present file are kept; a file of this package is replaced.

    Args:
        folder: folder of the shards, with the present file, if there is one.
        published: all published splits.
    """
    splits: dict[str, dict[str, Any]] = {}
    for entry in sorted(published, key=lambda entry: f"{entry.name}-{entry.split}"):
        # Where two names have the same split, the second is listed as NAME-SPLIT.
        label = entry.split if entry.split not in splits else f"{entry.name}-{entry.split}"
        values = (label, sum(entry.samples.values()), list(entry.samples), list(entry.samples.values()))
        splits[label] = dict(zip(_FIELDS, values, strict=True))
    return (json.dumps(_with_foreign_fields(folder, splits), indent=1) + "\n").encode()


def described_stems(folder: Folder) -> set[str]:
    """NAME-SPLIT of each split that the present `_info.json` describes; none if there is no such file."""
    try:
        splits: dict[str, dict[str, Any]] = json.loads(folder.read(INFO_FILE))["splits"]
        return {str(entry["filenames"][0]).rpartition("-")[0] for entry in splits.values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def _with_foreign_fields(folder: Folder, splits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    try:
        present = json.loads(folder.read(INFO_FILE))
        there: dict[str, dict[str, Any]] = present["splits"]
        is_ours = set(present) == {"splits"} and all(set(entry) == set(_FIELDS) for entry in there.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"splits": dict(splits)}
    if is_ours:
        return {"splits": dict(splits)}
    merged = {**there, **{split: {**there.get(split, {}), **entry} for split, entry in splits.items()}}
    return {**present, "splits": merged}
