"""A loss or a gradient that is not finite: name the samples, then stop or skip the batch."""

import json
from pathlib import Path

from pipeline.common.errors import PipelineError


class NotFiniteError(PipelineError, RuntimeError):
    """A step whose loss or gradient is not finite; raised on every rank."""

    def __init__(self, step: int, message: str) -> None:
        """Keep the number of the step, counted from 1."""
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[type["NotFiniteError"], tuple[int, str]]:
        return type(self), (self.step, str(self))


SKIPPED = "skipped.json"
"""Batches (numbered from 0) that are read but not trained on, with `--train.on-non-finite skip`."""


def read_skipped(run_dir: Path) -> set[int]:
    """Numbers of the batches that this run leaves out."""
    path = run_dir / SKIPPED
    return set(json.loads(path.read_text())) if path.exists() else set()
