"""`--train.micro-batch-size auto`: what ranks with different memory find, agree on and keep."""

import json
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.nn import Module

from pipeline.config.checks import check
from pipeline.config.schema import ConfigError, ModelConfig, TrainConfig
from pipeline.engine import trial
from pipeline.engine.distributed import World, join_world, leave_world
from pipeline.engine.engine import Engine
from pipeline.run import directory as run_directory
from pipeline.run.files import read_metrics
from pipeline.run.micro_batch import FoundMicroBatch, read_micro_batch, write_micro_batch
from pipeline.run.recorder import Recorder
from pipeline.tasks import find_task
from pipeline.train.micro_batch import largest_that_fits, settle_micro_batch
from pipeline.train.model import build_model
from tests.support import detections, segmentations
from tests.support.attempts import FAILED, FINISHED, INTERRUPTED, RunningAttempt
from tests.support.memory import Limits, LimitSteps, limit_memory, needed_memory
from tests.support.ranks import environment, free_port, run_ranks
from tests.support.small_shards import CLASSES, config, pack

NONE, ALL = 0.0, float("inf")


def automatic(folder: Path | str, cache: Path, **fields: Any) -> TrainConfig:
    """A training of a global batch of 24, whose micro-batch is found."""
    return config(folder, cache, micro_batch_size="auto", precision="fp32", **fields)


def needed(training: TrainConfig, samples: int) -> int:
    return needed_memory(training, build_model(training, CLASSES), CLASSES, samples)


@pytest.mark.parametrize(("fitting", "found", "tried"), [(9, 5, 1), (3, 3, 3), (1, 1, 4), (0, None, 4)])
def test_the_largest_that_fits_is_found_in_few_tries(fitting: int, found: int | None, tried: int):
    tries: list[int] = []

    def fits(candidate: int) -> bool:
        tries.append(candidate)
        return candidate <= fitting

    assert largest_that_fits([1, 2, 3, 4, 5], fits) == found
    assert len(tries) == tried
    assert tries[0] == 5


def settle_on(world: World, run_dir: Path, training: TrainConfig, model: Module, limits: list[float] | None) -> Any:
    """What a rank settles on, and whether its network and its random state are as before; or why it does not."""
    task = find_task(training.task)
    if limits is not None:
        limit_memory(limits[world.rank])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    recorder = Recorder(run_dir, is_main=world.is_main, world_size=world.size)
    try:
        settled = settle_micro_batch(
            training, model, task.device_transform(training, CLASSES), CLASSES, run_dir, world, recorder
        )
    except (ConfigError, RuntimeError) as error:
        return str(error)
    after = model.state_dict()
    is_unchanged = all(torch.equal(value, after[name]) for name, value in before.items())
    is_unchanged = is_unchanged and torch.equal(state, torch.random.get_rng_state())
    return settled.micro_batch_size, is_unchanged, all(p.grad is None for p in model.parameters())


def settle_in_turn(world: World, run_dir: Path, training: TrainConfig, limits: list[list[float] | None]) -> list[Any]:
    """What a rank settles on, in a run of its own for each entry of `limits`, and then again in the first of them."""
    results, model = [], build_model(training, CLASSES)
    for number, of_ranks in enumerate(limits):
        folder = run_dir / str(number)
        folder.mkdir(exist_ok=True)
        results.append(settle_on(world, folder, training, model, of_ranks))
    # Whatever the memory is later, it is not looked at.
    return [*results, settle_on(world, run_dir / "0", training, model, [NONE, NONE])]


def test_ranks_agree_on_the_least_and_keep_it(tmp_path: Path):
    training = check(automatic("none", tmp_path, global_batch_size=8), 2)
    (tmp_path / "2").mkdir()
    write_micro_batch(tmp_path / "2", FoundMicroBatch(micro_batch_size=2, world_size=1))
    (tmp_path / "3").mkdir()
    write_micro_batch(tmp_path / "3", FoundMicroBatch(micro_batch_size=6, world_size=1))
    some = needed(training, 2)
    first, second = run_ranks(settle_in_turn, 2, tmp_path, training, [None, [ALL, some], None, None, [ALL, NONE]])
    assert first == second
    without_gpus, least, kept, does_not_fit, refused, again = first
    assert without_gpus == again == (4, True, True)
    assert least == kept == (2, True, True)
    assert "global_batch_size 8 is not divisible by micro_batch_size 6 x world_size 2" in does_not_fit
    assert refused.startswith("--train.micro-batch-size auto: not even 2 images of 32 x 32 px fit into the memory of")
    assert "rank 1 on " in refused
    assert "launched again with one of: --train.gradient-checkpointing; or with another --run-dir: --tr" in refused
    assert "\n" not in refused
    found = read_micro_batch(tmp_path / "1")
    assert found is not None
    assert found.decided_by.startswith("rank 1 on ")
    assert read_micro_batch(tmp_path / "4") is None


@pytest.mark.thorough
@pytest.mark.parametrize(
    "training",
    [
        automatic("none", Path()),
        pytest.param(segmentations.training("none"), marks=pytest.mark.slow),
        pytest.param(detections.training("none", Path()), marks=pytest.mark.slow),
        pytest.param(
            detections.training("none", Path(), model=ModelConfig(name="retinanet_n", image_size=32)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda training: training.model.name,
)
def test_a_larger_micro_batch_takes_more_and_recomputed_blocks_take_less(training: TrainConfig):
    of_two, of_four = needed(training, 2), needed(training, 4)
    assert of_two < of_four
    assert needed(replace(training, gradient_checkpointing=True), 4) < of_four


@pytest.mark.parametrize("name", ["mask_rcnn_n", "retinanet_n"])
def test_images_of_a_detection_are_padded_to_the_largest_square(name: Literal["mask_rcnn_n", "retinanet_n"]):
    training = detections.training("none", Path(), model=ModelConfig(name=name, image_size=32))
    task = find_task("detection")
    batch = task.largest_batch(training, CLASSES, 3)
    images, sizes, counts, _, boxes, *_ = task.device_transform(training, CLASSES)(batch, "cpu")
    assert images.shape == (3, 3, 96, 96)
    assert sizes.tolist() == [[96, 64], [64, 96], [96, 64]]
    assert int(counts[0]) == 100
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    assert bool((boxes >= 0).all())
    assert bool((boxes <= 96).all())


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_a_run_equals_one_that_was_given_the_number_and_keeps_it_over_attempts(tmp_path: Path):
    pack(tmp_path / "shards", (24, 24))
    pack(tmp_path / "shards", (24,), split="validation")
    training = automatic(tmp_path / "shards", tmp_path / "cache", steps=3, save_every_steps=100)
    limits = Limits((needed(training, 6), needed(training, 4)))
    found, given = tmp_path / "found", tmp_path / "given"
    for run_dir, micro in ((found, "auto"), (given, 4)):
        run_directory.prepare(
            run_dir, check(replace(training, micro_batch_size=micro), 2), {"tracking_uri": "sqlite:///none.db"}
        )
    with RunningAttempt(found, before=limits, stop_at=2) as attempt:
        assert attempt.wait() == [INTERRUPTED, INTERRUPTED], attempt.output()[-3000:]
        assert "micro-batch: 4 (found in the memory of rank 1 on " in attempt.output()
    # A rank has less memory by now: what was found is kept.
    with RunningAttempt(found, before=Limits((NONE, NONE))) as attempt:
        assert attempt.wait() == [FINISHED, FINISHED], attempt.output()[-3000:]
        assert "kept since the run's first start" in attempt.output()
    with RunningAttempt(given) as attempt:
        assert attempt.wait() == [FINISHED, FINISHED], attempt.output()[-3000:]
    assert (found / "export/model.safetensors").read_bytes() == (given / "export/model.safetensors").read_bytes()
    assert [r["loss"] for r in read_metrics(found)] == [r["loss"] for r in read_metrics(given)]
    assert json.loads((found / "config.json").read_text(encoding="utf-8"))["train"]["micro_batch_size"] == "auto"


@pytest.mark.thorough
def test_a_step_that_runs_out_of_memory_says_in_one_line_what_helps(tmp_path: Path):
    pack(tmp_path / "shards", (24, 24))
    pack(tmp_path / "shards", (24,), split="validation")
    training = replace(automatic(tmp_path / "shards", tmp_path / "cache", steps=3), micro_batch_size=4)
    run_directory.prepare(tmp_path / "run", check(training, 1), {"tracking_uri": "sqlite:///none.db"})
    with RunningAttempt(tmp_path / "run", ranks=1, before=LimitSteps(NONE)) as attempt:
        assert attempt.wait() == [FAILED]
        assert re.search(r"error: rank 0 on \S+ has run out of memory with micro-batches of 4 \(", attempt.output())
        flags = "--train.micro-batch-size 2, --train.micro-batch-size auto, --train.gradient-checkpointing"
        assert f"one of: {flags}; or with another --run-dir: --train.precision bf16, a smaller" in attempt.output()


class MeasuredGpu(trial.GpuMemory):
    """A GPU of which `limit` bytes may be taken, and which notes the most that was before it was released."""

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self.peak = 0
        super().__init__(device)
        self._usable = limit or self._usable

    def release(self) -> None:
        self.peak = torch.cuda.max_memory_reserved()
        super().release()


def settle_on_gpu(folder: str, port: int) -> tuple[object, bool, bool]:
    """What is found in memory for between 16 and 32 images; whether no trace is left; whether the limit is lifted.

    The training's own engine then takes two steps within the same limit, or this raises.
    """
    os.environ |= environment(0, 1, port)
    world = join_world()
    try:
        model = ModelConfig(name="transxnet_t", image_size=224)
        training = replace(automatic("none", Path(folder), global_batch_size=256, model=model), precision="bf16")
        network, task = build_model(training, CLASSES), find_task(training.task)
        transform = task.device_transform(training, CLASSES)

        def inputs(samples: int) -> tuple[torch.Tensor, ...]:
            return transform(task.largest_batch(training, CLASSES, samples), world.device)

        memory, peaks = MeasuredGpu(world.device), []
        for samples in (16, 32):
            assert trial.fits(network, training, world, partial(inputs, samples), memory)
            peaks.append(memory.peak)
        limit = sum(peaks) // 2
        trial.open_memory = lambda device: MeasuredGpu(device, limit)
        before = torch.cuda.memory_allocated(), torch.cuda.get_rng_state().tolist()
        recorder = Recorder(Path(folder), is_main=True, world_size=1)
        settled = settle_micro_batch(training, network, transform, CLASSES, Path(folder), world, recorder)
        is_unchanged = before == (torch.cuda.memory_allocated(), torch.cuda.get_rng_state().tolist())
        is_lifted = torch.cuda.get_per_process_memory_fraction() == 1.0
        assert isinstance(settled.micro_batch_size, int)
        with MeasuredGpu(world.device, limit).bounded():
            engine = Engine(network, settled, world)
            for _ in range(2):
                engine.step((inputs(settled.micro_batch_size) for _ in range(engine.accumulation)), lr=1e-3, seed=0)
        return settled.micro_batch_size, is_unchanged, is_lifted
    finally:
        leave_world()


@pytest.mark.gpu
def test_a_gpu_finds_what_fits_and_the_training_fits_too(tmp_path: Path):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        assert fresh.submit(settle_on_gpu, str(tmp_path), free_port()).result() == (16, True, True)
