"""Writes what a run measured as an offline run of Weights & Biases, which `wandb sync` sends from anywhere."""

import importlib
import shutil
from pathlib import Path
from typing import Any, ClassVar

from pipeline.common.errors import InputError
from pipeline.common.secrets import mask_secrets
from pipeline.run.config import read_config
from pipeline.run.files import durable_step, read_metrics
from pipeline.tracking.metrics import metric_name
from pipeline.weights.card import is_exported

FOLDER = "wandb"
"""Folder of the offline runs, as the package names it."""


class WandbExport:
    """One offline run, begun anew by each command; Weights & Biases knows it again by the name of the run directory.

    Weights & Biases takes each step once. So only steps that a checkpoint covers are written: no resumed run computes
    them again.

    Raises:
        InputError: the package is not installed.
    """

    _unfinished: ClassVar[set[Path]] = set()
    """Run directories whose files are written in this process."""

    def __init__(self, run_dir: Path, plain: tuple[str, ...]) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise InputError(
                "--export wandb needs the package wandb: pip install 'transxnet-pipeline[wandb]'"
            ) from error
        self._run_dir, self._plain = run_dir, plain
        self._run: Any = None
        self._step = 0

    def update(self) -> Path | None:
        """Log the new steps; see `pipeline.status.export.Export`."""
        last = None if is_exported(self._run_dir) else durable_step(self._run_dir)
        records = read_metrics(self._run_dir)
        new = [r for r in records if r["step"] > self._step and (last is None or r["step"] <= last)]
        if not new:
            return None
        run = self._open()
        for record in new:
            values = {
                metric_name(key): value
                for key, value in record.items()
                if key not in self._plain and isinstance(value, int | float)
            }
            run.log({**values, "_timestamp": record.get("time", 0.0)}, step=record["step"])
        self._step = new[-1]["step"]
        return Path(run.dir).parent

    def close(self) -> None:
        """Complete the files."""
        if self._run is not None:
            self._run.finish()
            self._run = None
            self._unfinished.discard(self._run_dir)
            if not self._unfinished:
                # Its process writes the files after `finish` has returned.
                self._wandb.teardown()

    def _open(self) -> Any:
        if self._run is None:
            shutil.rmtree(self._run_dir / FOLDER, ignore_errors=True)
            config = read_config(self._run_dir)
            name = self._run_dir.resolve().name
            self._run = self._wandb.init(
                project=config.registry_name,
                name=name,
                id="".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name),
                dir=str(self._run_dir),
                mode="offline",
                reinit="create_new",
                config={key: mask_secrets(str(value)) for key, value in config.train_fields.items()},
                # Nothing of this machine or of this command is recorded, only what the training measured.
                settings=self._wandb.Settings(
                    silent=True, console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True
                ),
            )
            self._unfinished.add(self._run_dir)
        return self._run
