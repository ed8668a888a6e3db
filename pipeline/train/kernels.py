"""The check of the network's kernels at an attempt's start, agreed on by all ranks."""

import dataclasses
import json
from pathlib import Path
from typing import cast

import torch

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
    from transxnet.backend import leave_to_pytorch, left_to_pytorch, use_triton
    from transxnet.check import check_kernels as check_on_this_rank

    if not use_triton(config.model.backend, torch.empty(0, dtype=DTYPES[config.precision], device=world.device)):
        return
    verdicts = check_on_this_rank(world.device, DTYPES[config.precision])
    own = left_to_pytorch()
    everywhere = {operator for rank in cast("list[list[str]]", gather_objects(sorted(own))) for operator in rank}
    leave_to_pytorch(everywhere)
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
