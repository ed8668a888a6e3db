"""Checkpoints on disk: written to a temporary folder, hashed, fsynced, renamed when complete; verified when loaded.

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

from pipeline.common.atomic import file_sha256, fsync, write_text
from pipeline.common.errors import PipelineError
from pipeline.run.evaluations import awaiting
from pipeline.run.files import CHECKPOINTS, MANIFEST_NAME, read_evaluations, step_folders, step_name
from pipeline.tasks import Metric, stored_metric

SCHEMA = 1


class DamagedCheckpointError(PipelineError, RuntimeError):
    """A checkpoint whose files differ from its manifest; the message names the file and the fault."""


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of finished optimizer steps."""
        return int(self.manifest["step"])

    @property
    def world_size(self) -> int:
        """Number of ranks that wrote it."""
        return int(self.manifest["world_size"])

    def rank_file(self, rank: int) -> Path:
        """File with the state that `rank` wrote."""
        return self.path / rank_file_name(rank)


def rank_file_name(rank: int) -> str:
    """Name of a rank's file within a checkpoint."""
    return f"rank_{rank:05d}.safetensors"


class CheckpointStore:
    """The folder `RUN_DIR/checkpoints`: publishes, verifies and deletes checkpoints."""

    def __init__(self, run_dir: Path) -> None:
        """Use `run_dir/checkpoints`; the first rank that writes a checkpoint makes the folder."""
        self._run_dir, self.folder = run_dir, run_dir / CHECKPOINTS

    def partial(self, step: int) -> Path:
        """Temporary folder where the ranks write the files of a checkpoint before it is published."""
        return self.folder / f".{step_name(step)}.partial"

    def steps(self) -> list[int]:
        """Steps of the published checkpoints, oldest first; they are not verified."""
        return sorted(step_folders(self._run_dir))

    def remove_leftovers(self) -> None:
        """Delete the temporary folders of writers that were killed. Only the holder of the run's lock may call this."""
        for leftover in self.folder.glob(".step_*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def publish(self, step: int, manifest: dict[str, Any]) -> Checkpoint:
        """Publish the checkpoint of `step`, whose files all ranks have written to the temporary folder.

        The digests come from the ranks' `.sha256` files, which are deleted. The folder gets its final name last.
        """
        partial = self.partial(step)
        files = {}
        for rank in range(manifest["world_size"]):
            note = partial / f"{rank_file_name(rank)}.sha256"
            digest, size = note.read_text(encoding="utf-8").split()
            files[rank_file_name(rank)] = {"sha256": digest, "bytes": int(size)}
            note.unlink()
        full = {"schema": SCHEMA, **manifest, "step": step, "files": files}
        write_text(partial / MANIFEST_NAME, json.dumps(full, indent=1), durable=True)
        final = self.folder / step_name(step)
        if final.exists():
            shutil.rmtree(final)
        partial.replace(final)
        fsync(self.folder)
        return Checkpoint(final, full)

    def read(self, step: int) -> Checkpoint:
        """Verify the checkpoint of `step`: sizes and digests of all files.

        Raises:
            DamagedCheckpointError: a file is missing or differs from the manifest.
        """
        path = self.folder / step_name(step)
        try:
            manifest = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
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

    def newest_valid(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None; `warn` gets a line for each damaged one."""
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except DamagedCheckpointError as error:
                warn(f"damaged checkpoint, going back to the previous one: {error}")
        return None

    def retain(self, keep: int) -> list[int]:
        """Delete all checkpoints but the newest `keep` and the best by the primary metric; of equals the newest.

        Those that await their evaluation are kept too, the newest `keep` of them.

        Returns:
            The steps of the checkpoints that were deleted although they awaited their evaluation.
        """
        steps, later = self.steps(), read_evaluations(self._run_dir)
        best: int | None = None
        best_metric: Metric | None = None
        for step in steps:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                content = (self.folder / step_name(step) / MANIFEST_NAME).read_text(encoding="utf-8")
                metric = stored_metric(later.get(step) or json.loads(content))
                if metric is not None and metric.beats(None) and not (best_metric and best_metric.beats(metric)):
                    best, best_metric = step, metric
        waiting = awaiting(self._run_dir)
        deleted = [step for step in steps[:-keep] if step != best and step not in waiting[-keep:]]
        for step in deleted:
            doomed = self.folder / f".{step_name(step)}.deleted"
            (self.folder / step_name(step)).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        return [step for step in deleted if step in waiting]
