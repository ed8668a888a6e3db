"""Train from Python without the launcher: one process, a few steps on the handwritten digits.

    uv run python tests/examples/train.py

It packs the digits into `runs/digits`, trains in `runs/example` and registers the model `transxnet_n` in
`runs/mlflow.db`. Stopped and started again, it resumes from the last checkpoint; finished, it trains nothing more.
"""

from dataclasses import replace
from pathlib import Path

from jobs import Outcome
from pipeline.config import check
from pipeline.recipes.digits import demo, prepare_digits
from pipeline.run import directory
from pipeline.train import TrainTask


def main() -> None:
    """Train for eight steps and print where the model is."""
    shards, run_dir = Path("runs/digits"), Path("runs/example")
    prepare_digits(shards)

    recipe = demo()
    data = replace(recipe.data, shards=str(shards))
    config = replace(recipe, steps=8, global_batch_size=32, log_every_steps=2, data=data)
    directory.prepare(run_dir, check(config, world_size=1), facts={})

    task, outcome = TrainTask(run_dir), Outcome.FAILED
    try:
        outcome = task(lambda: False)  # the flag that asks the training to save and stop
    finally:
        task.ended(outcome)
    print(f"{outcome.value}: {run_dir / 'export' / 'model.safetensors'}")


if __name__ == "__main__":
    main()
