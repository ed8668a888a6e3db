"""The index of a split, memory-mapped by every process of a node: one copy in memory, whatever the number of readers.

Reading the parquet index of ImageNet takes a second and hundreds of megabytes. So the first process of a node that
needs it writes it as flat arrays into the node's cache folder, and all processes map those: 24 bytes a sample, 31 MB
for ImageNet. The keys lie in separate files (4 bytes and the text of each), which are read only to name a sample.
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

from pipeline.common.errors import PipelineError
from pipeline.common.processes import become_helper, start_helper
from pipeline.data.cache import CACHE_DIR, locked
from pipeline.tasks import find_task

if TYPE_CHECKING:
    import pyarrow as pa

    from sharding import Manifest


ROW = np.dtype([("offset", np.int64), ("xxh64", np.uint64), ("size", np.int32), ("label", np.int32)])
"""Entry of a sample: offset of its image in the shard, digest of the image's bytes, their number, and the label."""
TARGET = np.dtype(
    [("offset", np.int64), ("xxh64", np.uint64), ("size", np.int32), ("height", np.int32), ("width", np.int32)]
)
"""Entry of a sample whose target is a member of its own: its place and digest, and the size of the image."""
_FORMAT = 2
"""Version of the arrays' format, part of their folder's name."""
_KEEP_S = 30 * 24 * 3600
"""Seconds after which an unused index is removed from the cache folder."""
_HELPER_FROM = 100_000
"""Number of samples from which a helper process writes the arrays: the memory it takes is freed when it ends."""


class CacheFolderError(PipelineError, ValueError):
    """The node's folder for copies of indices and shards cannot be used."""


@dataclass(frozen=True)
class SampleIndex:
    """The samples of a split, memory-mapped from a folder that the processes of a node share.

    Attributes:
        folder: folder of the arrays.
        rows: `ROW` [num_samples], in the order of the shards.
        targets: `TARGET` [num_samples]; None where the targets are the labels.
        shard_names: file name of each shard.
        first_rows: int64 [num_shards + 1], first row of each shard, and at the end the number of samples.
    """

    folder: str
    rows: NDArray[np.void]
    shard_names: tuple[str, ...]
    first_rows: NDArray[np.int64]
    targets: NDArray[np.void] | None = None

    @classmethod
    def map(cls, folder: str) -> "SampleIndex":
        """Map the arrays that `open_index` wrote into `folder`."""
        shards = json.loads((Path(folder) / "shards.json").read_text(encoding="utf-8"))
        first_rows = np.concatenate([[0], np.cumsum([samples for _, samples in shards])])
        # A plain view of the mapping: numpy's memmap class makes each access several times slower.
        rows = np.asarray(np.load(Path(folder) / "rows.npy", mmap_mode="r"))
        targets = Path(folder) / "targets.npy"
        mapped = np.asarray(np.load(targets, mmap_mode="r")) if targets.exists() else None
        return cls(folder, rows, tuple(name for name, _ in shards), first_rows, mapped)

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position in `shard_names` of the shard that holds each row: int64 [N] for int64 [N]."""
        return np.searchsorted(self.first_rows, rows, side="right") - 1

    def aspects(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return width / height of the images at rows: float64 [N]; the split has targets beside its images."""
        assert self.targets is not None
        chosen = self.targets[rows]
        return chosen["width"] / chosen["height"]

    def keys(self, rows: Iterable[int]) -> list[str]:
        """Return the keys of the samples at `rows`."""
        ends = np.load(Path(self.folder) / "key_ends.npy", mmap_mode="r")
        text = np.memmap(Path(self.folder) / "keys.bin", np.uint8, "r")
        spans = ((int(ends[row - 1]) if row else 0, int(ends[row])) for row in rows)
        return [text[begin:end].tobytes().decode() for begin, end in spans]


def cache_folder(configured: str | None, flag: str = CACHE_DIR) -> Path:
    """Return the node's folder for indices or copies of shards, and create it if it does not exist.

    Args:
        configured: `DataConfig.cache_dir` or `.stage`, in which variables of the environment are replaced; None stands
            for a folder of the user below the system's temporary folder.
        flag: flag that chooses the folder, for messages.

    Raises:
        CacheFolderError: the folder cannot be created, belongs to another user or cannot be written, or a variable in
            it is not set.
    """
    hint = f"choose another one with {flag}"
    folder = Path(os.path.expandvars(configured or f"{tempfile.gettempdir()}/transxnet-shards-{os.getuid()}"))
    if "$" in str(folder):
        raise CacheFolderError(f"cache folder {folder} names a variable that is not set on this node; {hint}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        raise CacheFolderError(f"cache folder {folder} cannot be made ({error.strerror}); {hint}") from error
    if owner != os.getuid() or not os.access(folder, os.W_OK | os.X_OK):
        raise CacheFolderError(f"cache folder {folder} belongs to user {owner} or cannot be written; {hint}")
    return folder


def open_index(location: str, manifest: "Manifest", cache: Path) -> SampleIndex:
    """Map the index of a split; one process of the node first writes the node's copy if there is none.

    Args:
        location: folder or URI of the shards.
        manifest: manifest of the split.
        cache: result of `cache_folder`.

    Raises:
        ManifestError: the index is missing or does not match the manifest.
        CacheFolderError: the node's copy cannot be written.
    """
    folder = cache / f"index-{_FORMAT}-{manifest.digest[:32]}"
    if not folder.is_dir():
        with locked(cache / ".index.lock"):
            if not folder.is_dir():
                _remove_old(cache)
                write = _write if manifest.num_samples < _HELPER_FROM else _write_in_helper
                write(location, manifest, folder)
    with contextlib.suppress(OSError):
        os.utime(folder)
    return SampleIndex.map(str(folder))


def _write_in_helper(location: str, manifest: "Manifest", folder: Path) -> None:
    """Run `_write` in a helper process, and raise what it raised."""
    task, answer = os.memfd_create("index-task"), os.memfd_create("index-answer")
    try:
        os.write(task, pickle.dumps((location, manifest, folder)))
        code = start_helper(__name__, [str(task), str(answer)], (task, answer)).wait()
        pickled_error = os.pread(answer, os.fstat(answer).st_size, 0)
    finally:
        os.close(task)
        os.close(answer)
    if pickled_error:
        raise pickle.loads(pickled_error)
    if code:
        raise CacheFolderError(
            f"the helper process that writes the index of {location} to {folder.parent} ended with exit code {code}"
        )


def main() -> None:
    """Write the arrays that `_write_in_helper` asks for, and send back the exception if there is one."""
    task, answer = (int(text) for text in become_helper())
    try:
        _write(*pickle.loads(os.pread(task, os.fstat(task).st_size, 0)))
    except Exception as error:
        os.write(answer, pickle.dumps(error))


def _write(location: str, manifest: "Manifest", folder: Path) -> None:
    """Write the arrays into a temporary folder and rename it to `folder`."""
    # Imported here: a process that maps existing arrays needs no pyarrow.
    import pyarrow as pa

    from sharding import load_index

    table = load_index(location, manifest)
    rows = np.empty(table.num_rows, ROW)
    for name in ROW.names or ():
        rows[name] = table[name].to_numpy()
    targets = _targets(table) if find_task(manifest.task).reads_target else None
    # Arrow holds strings as the offsets between them and one buffer of UTF-8 text.
    keys = table["key"].cast(pa.large_string()).combine_chunks()
    _, offsets, text = keys.buffers()
    del table
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".index-", dir=folder.parent))
        try:
            np.save(temporary / "rows.npy", rows)
            if targets is not None:
                np.save(temporary / "targets.npy", targets)
            np.save(temporary / "key_ends.npy", np.frombuffer(offsets, np.int64)[1 : len(keys) + 1].astype(np.uint32))
            (temporary / "keys.bin").write_bytes(text or b"")
            (temporary / "shards.json").write_text(
                json.dumps([(shard.name, shard.samples) for shard in manifest.shards]), encoding="utf-8"
            )
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if not folder.is_dir():
            reason = error.strerror or f"the disk is full or a quota is reached: {error}"  # numpy gives only a text
            raise CacheFolderError(
                f"the index of {location} could not be written to {folder.parent} ({reason}); "
                "make room or choose another folder with --train.data.cache-dir"
            ) from error


def _targets(table: "pa.Table") -> NDArray[np.void]:
    """Return the places of the targets, and the sizes of the images: `TARGET` [num_samples]."""
    targets = np.empty(table.num_rows, TARGET)
    for name in ("offset", "xxh64", "size"):
        targets[name] = table[f"target_{name}"].to_numpy()
    for name in ("height", "width"):
        targets[name] = table[name].to_numpy()
    return targets


def _remove_old(cache: Path) -> None:
    """Remove indices that no process has opened for a month, and old temporary folders of killed processes."""
    for folder in [*cache.glob("index-*"), *cache.glob(".index-*")]:
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _KEEP_S:
                shutil.rmtree(folder, ignore_errors=True)
