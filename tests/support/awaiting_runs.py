"""A run whose checkpoints await their evaluation."""

import json
from pathlib import Path

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.run import directory as run_directory
from pipeline.run.evaluations import AWAITS
from tests.support.tracking_runs import write_checkpoint

SETUP = ("module load cuda",)
"""What the evaluation jobs of the run do before they start."""
STEPS = (2, 4, 6)
"""Steps of its checkpoints; the last one ends its training."""


def prepare_awaiting(folder: Path) -> Path:
    """Write a run with three checkpoints that await their evaluation, none of which can be read; return its folder."""
    evaluation = {"cluster": "slurm", "name": "evaluate", "resources": {"setup": SETUP}}
    config = TrainConfig(steps=6, model=ModelConfig(name="transxnet_n"))
    run_directory.prepare(folder, config, {"tracking_uri": None, "total_steps": 6, "evaluation": evaluation})
    for step in STEPS:
        write_checkpoint(folder, step)
        manifest = folder / f"checkpoints/step_{step:08d}/manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {AWAITS: True}))
    return folder
