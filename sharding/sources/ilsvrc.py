"""The official archives of ImageNet, read in place: nothing is extracted.

`ILSVRC2012_img_train.tar` is a tar of 1000 tars, one per class. `ILSVRC2012_img_val.tar` is flat; its ground truth is
in the development kit, as ILSVRC ids, which `meta.mat` maps to WordNet ids.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from sharding.errors import SourceError
from sharding.manifest import ClassInfo
from sharding.sources.classes import ClassList
from sharding.sources.devkit import DEVKIT, Devkit, read_devkit
from sharding.sources.listing import Listing, sample_keys
from sharding.sources.range_reader import RangeReader
from sharding.storage import Folder
from sharding.tarfiles import BLOCK, Member, iter_members

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
_INNER = re.compile(r"^(?:.*/)?(n\d{8})\.tar$")
_VALIDATION = re.compile(r"^(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG$", re.IGNORECASE)
# Class archives read at the same time, so that the disk fetches the next header of each while others are parsed.
_WALKS = 64


def find_splits(root: Folder) -> list[str]:
    """Find the splits whose archives are in `root`."""
    names = root.names()
    return [split for split, archive in ARCHIVES.items() if archive in names]


def list_archive(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List the images of one of ImageNet's archives.

    Args:
        root: folder of the archives.
        split: `train` or `validation`.
        known: all classes; None uses those of the development kit or, for `train`, those of the archive.

    Raises:
        SourceError: an archive or the development kit is missing, truncated, or contradicts itself.
    """
    devkit = read_devkit(root)
    if split == "train":
        return _list_train(root, known or (devkit and devkit.classes))
    if split == "validation":
        if devkit is None:
            raise SourceError(
                f"{root.location}/{DEVKIT} is missing: it holds the classes of {ARCHIVES['validation']}. "
                "Put it beside the archive."
            )
        return _list_validation(root, known or devkit.classes, devkit)
    raise SourceError(f"ImageNet's archives have no labelled split {split!r}; they have train and validation")


def _size(root: Folder, name: str) -> int:
    size = root.size(name)
    if size is None:
        raise SourceError(f"{root.location}/{name} is missing")
    return size


def _list_train(root: Folder, known: ClassList | None) -> Listing:
    archive = ARCHIVES["train"]
    size = _size(root, archive)
    with RangeReader(root) as reader:

        def read_at(offset: int, length: int) -> bytes:
            return reader.read(archive, offset, length)

        inner: dict[str, Member] = {}
        for member in iter_members(read_at, 0, size, archive):
            match = _INNER.match(member.name)
            if match is None:
                raise SourceError(
                    f"{archive} holds {member.name!r}; it should hold one nXXXXXXXX.tar per class and nothing else"
                )
            inner[match[1]] = member
        wnids = sorted(inner)
        classes = known or ClassList(tuple(ClassInfo(wnid, wnid) for wnid in wnids))
        labels = classes.labels(wnids, archive)
        walks = {wnid: _walk_class(read_at, inner[wnid]) for wnid in wnids}
        if root.is_local:
            parts = _walk_round_robin(walks, lambda member: reader.prefetch(archive, _next_header(member), BLOCK))
        else:
            with ThreadPoolExecutor(_WALKS) as pool:
                parts = list(pool.map(list, walks.values()))
    members = [member for part in parts for member in part]
    counts = [len(part) for part in parts]
    empty = [wnid for wnid, count in zip(wnids, counts, strict=True) if not count]
    notes = [f"{len(empty)} classes hold no images ({', '.join(empty[:5])})"] if empty else []
    return _listing(
        "train",
        classes,
        archive,
        members,
        names=[f"{wnid}.tar/{member.name}" for wnid, part in zip(wnids, parts, strict=True) for member in part],
        keys=sample_keys(
            [member.name for member in members],
            [wnid for wnid, part in zip(wnids, parts, strict=True) for _ in part],
        ),
        labels=np.repeat(np.array([labels[wnid] for wnid in wnids], np.int32), counts),
        notes=notes,
    )


def _walk_class(read_at: Callable[[int, int], bytes], inner: Member) -> Iterator[Member]:
    where = f"{ARCHIVES['train']}: {inner.name}"
    return iter_members(read_at, inner.offset, inner.offset + inner.size, where)


def _next_header(member: Member) -> int:
    return member.offset + member.size + -member.size % BLOCK


def _walk_round_robin(walks: Mapping[str, Iterator[Member]], announce: Callable[[Member], None]) -> list[list[Member]]:
    """Read the members of all class archives, from up to `_WALKS` archives in turn.

    A single thread that announces many headers to the disk is faster than threads, which contend for the interpreter
    lock as soon as the headers are in memory.

    Args:
        walks: iterator over the members of each class archive, by class id.
        announce: called with each member that was read, to prefetch the header after it.

    Returns:
        The members of each class archive, in the order of `walks`.
    """
    found: dict[str, list[Member]] = {name: [] for name in walks}
    waiting = deque(walks.items())
    running: deque[tuple[str, Iterator[Member]]] = deque()
    while waiting or running:
        while waiting and len(running) < _WALKS:
            running.append(waiting.popleft())
        name, walk = running.popleft()
        member = next(walk, None)
        if member is not None:
            found[name].append(member)
            announce(member)
            running.append((name, walk))
    return list(found.values())


def _list_validation(root: Folder, classes: ClassList, devkit: Devkit) -> Listing:
    archive = ARCHIVES["validation"]
    size = _size(root, archive)
    with RangeReader(root) as reader:
        members = list(iter_members(lambda offset, length: reader.read(archive, offset, length), 0, size, archive))
    wnids, truth = devkit.wnids, devkit.truth
    label = classes.labels(wnids.values(), DEVKIT)
    labels = np.empty(len(members), np.int32)
    for position, member in enumerate(members):
        match = _VALIDATION.match(member.name)
        if match is None:
            raise SourceError(
                f"{archive} holds {member.name!r}; it should hold ILSVRC2012_val_XXXXXXXX.JPEG and nothing else"
            )
        number = int(match[1])
        if not 1 <= number <= len(truth):
            raise SourceError(f"{archive}: {member.name} has no ground truth; {DEVKIT} has {len(truth):,} labels")
        if truth[number - 1] not in wnids:
            raise SourceError(f"{DEVKIT}: class {truth[number - 1]} of {member.name} is not in meta.mat")
        labels[position] = label[wnids[truth[number - 1]]]
    names = [member.name for member in members]
    return _listing("validation", classes, archive, members, names, sample_keys(names, [""] * len(names)), labels, [])


def _listing(
    split: str,
    classes: ClassList,
    archive: str,
    members: list[Member],
    names: list[str],
    keys: pa.StringArray,
    labels: np.ndarray[Any, np.dtype[np.int32]],
    notes: list[str],
) -> Listing:
    return Listing(
        source_format="ilsvrc",
        split=split,
        classes=classes.classes,
        files=pa.array([archive], pa.string()),
        file=np.zeros(len(members), np.int32),
        names=pa.array(names, pa.string()),
        keys=keys,
        labels=labels,
        offsets=np.array([member.offset for member in members], np.int64),
        sizes=np.array([member.size for member in members], np.int64),
        notes=tuple(notes),
    )
