"""Checkpoints on disk: written aside, hashed, fsynced, renamed when complete; loaded only when every digest holds.

A checkpoint `step_00000100/` holds one safetensors file a rank (`rank_00000.safetensors`) and `manifest.json` with the
sha256 of each. DeepSpeed's own `save_checkpoint` publishes `latest` before the other ranks' files exist and hashes
nothing, so it is not used; this format also needs no pickle and no conversion for another number of ranks.
"""

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.common.atomic import file_sha256, fsync, write_text
from pipeline.common.errors import PipelineError

SCHEMA = 1
CHUNK = 16 * 2**20
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16"}


class DamagedCheckpointError(PipelineError, RuntimeError):
    """A checkpoint whose files are not what its manifest says; the message names the file and the fault."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Finished optimizer steps it holds."""
        return int(self.manifest["step"])

    @property
    def world_size(self) -> int:
        """Number of ranks that wrote it."""
        return int(self.manifest["world_size"])

    def rank_file(self, rank: int) -> Path:
        """The state that `rank` wrote."""
        return self.path / rank_file_name(rank)


def rank_file_name(rank: int) -> str:
    """Name of a rank's file within a checkpoint."""
    return f"rank_{rank:05d}.safetensors"


def step_name(step: int) -> str:
    """Name of a checkpoint's folder: `step_00000100`."""
    return f"step_{step:08d}"


class CheckpointStore:
    """The folder `RUN_DIR/checkpoints`: what is there, what is sound, what goes."""

    def __init__(self, run_dir: Path) -> None:
        """Keep checkpoints in `run_dir/checkpoints`, which is made when the first one is written."""
        self.folder = run_dir / "checkpoints"

    def aside(self, step: int) -> Path:
        """Where the ranks write the files of a checkpoint before it is published."""
        return self.folder / f".{step_name(step)}.partial"

    def steps(self) -> list[int]:
        """Steps of the published checkpoints, oldest first, sound or not."""
        names = sorted(p.name for p in self.folder.glob("step_*") if p.is_dir())
        return [int(name.removeprefix("step_")) for name in names if name.removeprefix("step_").isdigit()]

    def remove_leftovers(self) -> None:
        """Delete what writers that were killed left behind. Only the holder of the run's lock may call this."""
        for leftover in self.folder.glob(".step_*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def publish(self, step: int, manifest: dict[str, Any]) -> Checkpoint:
        """Complete the checkpoint of `step` from the files that every rank has finished writing aside.

        The digests come from the ranks' `.sha256` notes, which are dropped; the folder gets its name last.
        """
        aside = self.aside(step)
        files = {}
        for rank in range(manifest["world_size"]):
            note = aside / f"{rank_file_name(rank)}.sha256"
            digest, size = note.read_text().split()
            files[rank_file_name(rank)] = {"sha256": digest, "bytes": int(size)}
            note.unlink()
        full = {"schema": SCHEMA, **manifest, "step": step, "files": files}
        write_text(aside / "manifest.json", json.dumps(full, indent=1), durable=True)
        final = self.folder / step_name(step)
        if final.exists():
            shutil.rmtree(final)
        aside.replace(final)
        fsync(self.folder)
        return Checkpoint(final, full)

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, every digest checked; `DamagedCheckpointError` says what does not hold."""
        path = self.folder / step_name(step)
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            files = manifest["files"]
            if manifest["schema"] != SCHEMA or manifest["step"] != step:
                raise DamagedCheckpointError(
                    f"{path}: manifest of schema {manifest['schema']}, step {manifest['step']}"
                )
            for name, expected in files.items():
                size = (path / name).stat().st_size
                if size != expected["bytes"]:
                    raise DamagedCheckpointError(f"{path / name}: {size} bytes instead of {expected['bytes']}")
                if file_sha256(path / name) != expected["sha256"]:
                    raise DamagedCheckpointError(f"{path / name}: its sha256 is not the manifest's")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCheckpointError(f"{path}: {error}") from error
        return Checkpoint(path, manifest)

    def newest_sound(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint whose digests hold, or None; `say` is told of each that is passed over."""
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except DamagedCheckpointError as error:
                say(f"checkpoint passed over, going back to the one before: {error}")
        return None

    def retain(self, keep: int) -> None:
        """Delete all but the newest `keep` and the best by top-1."""
        steps = self.steps()
        best, best_top1 = None, -1.0
        for step in steps:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                top1 = json.loads((self.folder / step_name(step) / "manifest.json").read_text())["top1"]
                if top1 is not None and top1 >= best_top1:
                    best, best_top1 = step, top1
        for step in steps[:-keep]:
            if step != best:
                doomed = self.folder / f".{step_name(step)}.deleted"
                (self.folder / step_name(step)).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
