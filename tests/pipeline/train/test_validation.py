"""Validation during training: top-1 is the same to the last digit for any world size."""

from pathlib import Path

import pytest
import torch

from pipeline.engine.distributed import World
from pipeline.engine.ema import Ema
from pipeline.engine.fragments import LocalWeight
from pipeline.train.model import build_model
from pipeline.train.validation import Evaluator
from tests.support.ranks import run_ranks
from tests.support.small_shards import CLASSES, config, pack

IMAGES = (29, 3, 21)


def evaluate(world: World, folder: str, cache: str) -> dict[str, float]:
    settings = config(folder, Path(cache), data={"workers": 1})
    torch.manual_seed(0)
    model = build_model(settings, CLASSES)
    weights = [
        LocalWeight(name=name, start=0, shape=weight.shape, values=weight.detach().flatten())
        for name, weight in model.named_parameters()
    ]
    names = [str(number) for number in range(CLASSES)]
    average = Ema(weights, model, 0.9, partitioned=False)
    return Evaluator(settings, world, Path(cache), names)(average.full_state(), 1) or {}


@pytest.mark.slow
def test_top1_is_the_same_to_the_last_digit_for_1_to_4_processes(tmp_path):
    pack(tmp_path, IMAGES, split="validation")
    pack(tmp_path, (5,))
    results = {size: run_ranks(evaluate, size, str(tmp_path), str(tmp_path / "cache")) for size in (1, 2, 3, 4)}
    [alone] = results[1]
    assert 0 < alone["top1"] < 1
    for size, of_all_ranks in results.items():
        for result in of_all_ranks:
            assert result == alone | {"loss": pytest.approx(alone["loss"])}, size
