"""The check of the network's kernels at an attempt's start, agreed on by all ranks."""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import torch

from pipeline.common.atomic import read_json
from pipeline.config.schema import TrainConfig
from pipeline.engine.distributed import World, gather_objects
from pipeline.engine.engine import DTYPES
from pipeline.run.files import LOGS
from pipeline.run.recorder import Recorder


def check_kernels(config: TrainConfig, world: World, run_dir: Path, recorder: Recorder) -> None:
    """Leave to PyTorch, on every rank, the operators whose kernels fail or are slower on any rank's GPU. Collective.

    Ranks that computed an operator differently would wait for each other's statistics. The first rank of each node
    prints a line for each such operator. Rank 0 writes the table of its node to
    `submitit/kernels_report_ATTEMPT.json`, which MLflow gets. Where the network does not use the kernels (on CPUs, on
    GPUs of compute capability below 8.0, with the reference backend) nothing is done.
    """
    from transxnet.backend import left_to_pytorch

    if not _uses_kernels(config, world):
        return
    verdicts, own = _agree(config, world, set())
    everywhere = left_to_pytorch()
    if not world.is_main:
        return
    for operator in sorted(everywhere - own):
        recorder.warn(f"kernels of {operator} are left to PyTorch: another rank's GPU does not pass their check")
    table = {
        "precision": config.precision,
        "left_to_pytorch": sorted(everywhere),
        "operators": [dataclasses.asdict(verdict) for verdict in verdicts],
    }
    folder = run_dir / LOGS
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / f"kernels_report_{recorder.attempt}.json").write_text(
        json.dumps(table, indent=1) + "\n", encoding="utf-8"
    )


def agree_on_kernels(config: TrainConfig, world: World, run_dir: Path) -> None:
    """Check the kernels on the ranks of an evaluation job; leave to PyTorch also what the training has left to it.

    Its scores then come from the same operators. Collective.
    """
    if _uses_kernels(config, world):
        reports = sorted((run_dir / LOGS).glob("kernels_report_*.json"), key=lambda path: path.stat().st_mtime)
        table = (read_json(reports[-1]) if reports else None) or {}
        _agree(config, world, set(table.get("left_to_pytorch", [])))


def _uses_kernels(config: TrainConfig, world: World) -> bool:
    from transxnet.backend import use_triton

    return use_triton(config.model.backend, torch.empty(0, dtype=DTYPES[config.precision], device=world.device))


def _agree(config: TrainConfig, world: World, others: set[str]) -> tuple[list[Any], set[str]]:
    """Check the kernels, and leave to PyTorch what any rank leaves to it, and `others`. Collective.

    Returns:
        The verdicts of this rank, and the operators that it leaves to PyTorch by itself.
    """
    from transxnet.backend import leave_to_pytorch, left_to_pytorch
    from transxnet.check import check_kernels as check_on_this_rank

    verdicts = list(check_on_this_rank(world.device, DTYPES[config.precision]))
    own = set(left_to_pytorch())
    ranks = cast("list[list[str]]", gather_objects(sorted(own | others)))
    leave_to_pytorch({operator for rank in ranks for operator in rank})
    return verdicts, own
