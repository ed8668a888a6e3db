"""The index of a split as every process of a node maps it: one copy in the page cache, whatever the number of readers.

The parquet index of ImageNet takes a second and hundreds of megabytes to read. So the first process of a node that
needs it has it written out as flat arrays into the cache folder, and all map those: 24 bytes a sample, 31 MB for
ImageNet, and apart from them the keys (4 bytes and their letters), which are touched only when a sample is named.
"""

import contextlib
import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.common.processes import become_helper, start_helper
from pipeline.data.cache import locked

if TYPE_CHECKING:
    from sharding import Manifest


ROW = np.dtype([("offset", np.int64), ("xxh64", np.uint64), ("size", np.int32), ("label", np.int32)])
"""What is known of a sample: where its image begins in its shard, its digest, its bytes and its label."""
_FORMAT = 2
_KEEP_S = 30 * 24 * 3600
_APART_FROM = 100_000
"""Samples from which on another process writes the arrays, and takes the memory with it when it ends."""


class CacheFolderError(ValueError):
    """The folder for the node's copies of indices and shards cannot be used."""


@dataclass(frozen=True)
class SampleIndex:
    """The samples of a split, mapped from a folder that the processes of a node share.

    Attributes:
        folder: where the arrays lie.
        rows: `ROW` [num_samples], in shard order.
        shard_names: file name of each shard.
        first_rows: int64 [num_shards + 1], row at which each shard begins, and the number of samples.
    """

    folder: str
    rows: NDArray[np.void]
    shard_names: tuple[str, ...]
    first_rows: NDArray[np.int64]

    @classmethod
    def map(cls, folder: str) -> "SampleIndex":
        """Map the arrays that `open_index` wrote."""
        shards = json.loads((Path(folder) / "shards.json").read_text())
        first_rows = np.concatenate([[0], np.cumsum([samples for _, samples in shards])])
        # A plain view of the mapping: numpy's memmap class makes each access several times slower.
        rows = np.asarray(np.load(Path(folder) / "rows.npy", mmap_mode="r"))
        return cls(folder, rows, tuple(name for name, _ in shards), first_rows)

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in `shard_names` of the shards that hold some rows: int64 [N]."""
        return np.searchsorted(self.first_rows, rows, side="right") - 1

    def keys(self, rows: Iterable[int]) -> list[str]:
        """Keys of rows."""
        ends = np.load(Path(self.folder) / "key_ends.npy", mmap_mode="r")
        text = np.memmap(Path(self.folder) / "keys.bin", np.uint8, "r")
        spans = ((int(ends[row - 1]) if row else 0, int(ends[row])) for row in rows)
        return [text[begin:end].tobytes().decode() for begin, end in spans]


def cache_folder(configured: str | None) -> Path:
    """The node's folder for indices and remote shards, made if it is not there.

    Args:
        configured: `DataConfig.cache_dir`.

    Raises:
        CacheFolderError: it cannot be made or belongs to somebody else.
    """
    hint = "choose another one with --train.data.cache-dir"
    folder = Path(configured or f"{tempfile.gettempdir()}/transxnet-shards-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise CacheFolderError(f"cache folder {folder} cannot be made ({error.strerror}); {hint}") from error
    if owner != os.getuid() or not os.access(folder, os.W_OK | os.X_OK):
        raise CacheFolderError(f"cache folder {folder} belongs to user {owner} or cannot be written; {hint}")
    return folder


def open_index(location: str, manifest: "Manifest", cache: Path) -> SampleIndex:
    """Map the index of a split, writing the node's copy if it is not there; one process of the node does so.

    Args:
        location: folder or URI of the shards.
        manifest: of the split.
        cache: `cache_folder(...)`.

    Raises:
        ManifestError: the index is missing or does not fit its manifest.
        CacheFolderError: the node's copy cannot be written.
    """
    folder = cache / f"index-{_FORMAT}-{manifest.digest[:32]}"
    if not folder.is_dir():
        with locked(cache / ".index.lock"):
            if not folder.is_dir():
                _remove_old(cache)
                write = _write if manifest.num_samples < _APART_FROM else _write_apart
                write(location, manifest, folder)
    with contextlib.suppress(OSError):
        os.utime(folder)
    return SampleIndex.map(str(folder))


def _write_apart(location: str, manifest: "Manifest", folder: Path) -> None:
    """As `_write`, in another process."""
    task, answer = os.memfd_create("index-task"), os.memfd_create("index-answer")
    try:
        os.write(task, pickle.dumps((location, manifest, folder)))
        code = start_helper(__name__, [str(task), str(answer)], (task, answer)).wait()
        said = os.pread(answer, os.fstat(answer).st_size, 0)
    finally:
        os.close(task)
        os.close(answer)
    if said:
        raise pickle.loads(said)
    if code:
        raise CacheFolderError(f"the process that writes the index of {location} to {folder.parent} ended with {code}")


def main() -> None:
    """Write the arrays that `_write_apart` asks for, and answer with the exception if there is one."""
    task, answer = (int(text) for text in become_helper())
    try:
        _write(*pickle.loads(os.pread(task, os.fstat(task).st_size, 0)))
    except Exception as error:
        os.write(answer, pickle.dumps(error))


def _write(location: str, manifest: "Manifest", folder: Path) -> None:
    """Write the arrays aside and rename them into place."""
    import pyarrow as pa

    from sharding import load_index

    table = load_index(location, manifest)
    rows = np.empty(table.num_rows, ROW)
    for name in ROW.names or ():
        rows[name] = table[name].to_numpy()
    # As Arrow holds strings: where each ends, and all letters one after the other.
    keys = table["key"].cast(pa.large_string()).combine_chunks()
    _, ends, letters = keys.buffers()
    del table
    try:
        aside = Path(tempfile.mkdtemp(prefix=".index-", dir=folder.parent))
        try:
            np.save(aside / "rows.npy", rows)
            np.save(aside / "key_ends.npy", np.frombuffer(ends, np.int64)[1 : len(keys) + 1].astype(np.uint32))
            (aside / "keys.bin").write_bytes(letters or b"")
            (aside / "shards.json").write_text(json.dumps([(shard.name, shard.samples) for shard in manifest.shards]))
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():
            raise CacheFolderError(
                f"the index of {location} could not be written to {folder.parent} ({error.strerror}); "
                "make room or choose another folder with --train.data.cache-dir"
            ) from error


def _remove_old(cache: Path) -> None:
    """Remove indices that nobody opened for a month, and what a killed process left."""
    for folder in [*cache.glob("index-*"), *cache.glob(".index-*")]:
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _KEEP_S:
                shutil.rmtree(folder, ignore_errors=True)
