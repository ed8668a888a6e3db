"""The number of operations that the host dispatches for one update of the weights; each costs microseconds on a GPU."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config.schema import MixConfig, ModelConfig, TrainConfig
from pipeline.engine.distributed import World
from pipeline.engine.ema import Ema
from pipeline.engine.engine import Engine
from pipeline.train.model import build_model
from tests.support.ranks import run_ranks

STEP_BUDGET = 100
"""Most operations of one `engine.step()` for any network; TransXNet-T takes 15,465 with DeepSpeed's defaults and a
parameter for each weight."""


class Dispatched(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def count(world: World, folder: str) -> dict[str, Counter[str]]:
    config = TrainConfig(
        global_batch_size=2,
        precision="bf16",
        model=ModelConfig(name="transxnet_n", image_size=32),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
    )
    engine = Engine(build_model(config, 10), config, world)
    ema = Ema(engine.local_weights(), engine.network, 0.9, partitioned=False)
    images, targets = torch.randn(2, 3, 32, 32), torch.softmax(torch.randn(2, 10), 1)
    engine.step(iter([(images, targets)]), lr=1e-3, seed=0)
    engine.deepspeed.backward(engine.deepspeed(images, targets))
    with Dispatched() as step:
        engine.deepspeed.step()
    with Dispatched() as average:
        ema.update()
    return {"step": step.counts, "ema": average.counts}


@pytest.mark.thorough
def test_an_optimizer_step_dispatches_few_operations(tmp_path: Path):
    [counts] = run_ranks(count, 1, str(tmp_path))
    assert sum(counts["step"].values()) <= STEP_BUDGET, counts["step"].most_common(12)
    assert sum(counts["ema"].values()) == 1, counts["ema"]
