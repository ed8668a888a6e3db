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
from pipeline.config.schema import ConfigError, DetectionConfig, ModelConfig, TrainConfig
from pipeline.engine import trial
from pipeline.engine.distributed import World, join_world, leave_world
from pipeline.engine.engine import Engine
from pipeline.run import directory as run_directory
from pipeline.run.files import read_metrics
from pipeline.run.micro_batch import FoundMicroBatch, read_micro_batch, write_micro_batch
from pipeline.run.recorder import Recorder
from pipeline.tasks import find_task
from pipeline.train.kernels import check_kernels
from pipeline.train.micro_batch import largest_that_fits, settle_micro_batch
from pipeline.train.model import build_model
from tests.support import detections, segmentations
from tests.support.attempts import FAILED, FINISHED, INTERRUPTED, RunningAttempt
from tests.support.memory import LimitedMemory, Limits, LimitSteps, limit_memory, needed_memory
from tests.support.ranks import environment, free_port, run_ranks
from tests.support.small_shards import CLASSES, config, pack

NONE, ALL = 0.0, float("inf")


def automatic(folder: Path | str, cache: Path, **fields: Any) -> TrainConfig:
    """A training of a global batch of 24, whose micro-batch is found."""
    return config(folder, cache, precision="fp32", **{"micro_batch_size": "auto", **fields})


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


def settle_on(world: World, run_dir: Path, training: TrainConfig, model: Module, limits: list[float | None]) -> Any:
    """What a rank settles on, and whether its network and its random state are as before; or why it does not."""
    task = find_task(training.task)
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


def settle_in_turn(world: World, run_dir: Path, training: TrainConfig, limits: list[list[float | None]]) -> list[Any]:
    """What a rank settles on, in a run of its own for each entry of `limits`, and then again in the second of them."""
    results, model = [], build_model(training, CLASSES)
    for number, of_ranks in enumerate(limits):
        folder = run_dir / str(number)
        folder.mkdir(exist_ok=True)
        results.append(settle_on(world, folder, training, model, of_ranks))
    # Whatever the memory is later, it is not looked at.
    return [*results, settle_on(world, run_dir / "1", training, model, [NONE, NONE])]


@pytest.mark.thorough
def test_ranks_agree_on_the_least_and_keep_it(tmp_path: Path):
    training = check(automatic("none", tmp_path, global_batch_size=8), 2)
    # Run 2 had CPUs alone before; run 3 was found on another number of ranks.
    for run, micro, by in ((2, 4, ""), (3, 6, "rank 0 on n1")):
        (tmp_path / str(run)).mkdir()
        write_micro_batch(tmp_path / str(run), FoundMicroBatch(micro_batch_size=micro, world_size=1, decided_by=by))
    some, cpus = needed(training, 2), None
    limits = [[cpus, cpus], [ALL, some], [ALL, some], [ALL, ALL], [ALL, NONE], [ALL, cpus]]
    first, second = run_ranks(settle_in_turn, 2, tmp_path, training, limits)
    assert first == second
    without_gpus, least, anew, does_not_fit, refused, mixed, again = first
    assert without_gpus == (4, True, True)
    assert least == anew == again == (2, True, True)
    assert "global_batch_size 8 is not divisible by micro_batch_size 6 x world_size 2" in does_not_fit
    assert refused.startswith("--train.micro-batch-size auto: not even 2 images of 32 x 32 px fit into the memory of")
    assert "rank 1 on " in refused
    assert "launched again with one of: --train.gradient-checkpointing; or with another --run-dir: --tr" in refused
    assert " in fp32 (7.5 GiB are held by other processes); what helps" in refused
    assert "\n" not in refused
    assert "rank 1 trains on a CPU, and rank 0 on " in mixed
    found = read_micro_batch(tmp_path / "1")
    assert found is not None
    assert found.decided_by.startswith("rank 1 on ")
    assert read_micro_batch(tmp_path / "4") is read_micro_batch(tmp_path / "5") is None


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


def test_what_cuda_graphs_keep_is_held_while_the_next_images_come():
    training = automatic("none", Path(), micro_batch_size=2, cuda_graphs=True)
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    task, memory, held = find_task(training.task), LimitedMemory(ALL), []
    batch, transform = task.largest_batch(training, CLASSES, 2), task.device_transform(training, CLASSES)

    def inputs() -> tuple[torch.Tensor, ...]:
        held.append(memory.used > 0)
        return transform(batch, world.device)

    assert trial.fits(build_model(training, CLASSES), training, world, inputs, memory)
    assert held == [False, True] * 2


@pytest.mark.parametrize("name", ["mask_rcnn_n", "retinanet_n"])
def test_images_of_a_detection_are_padded_to_the_largest_square(name: Literal["mask_rcnn_n", "retinanet_n"]):
    training = detections.training("none", Path(), model=ModelConfig(name=name, image_size=32))
    task = find_task("detection")
    batch = task.largest_batch(training, CLASSES, 3)
    images, sizes, counts, _, boxes, *_ = task.device_transform(training, CLASSES)(batch, "cpu")
    assert images.shape == (3, 3, 96, 96)
    assert sizes.tolist() == [[96, 64], [64, 96], [96, 64]]
    assert counts.tolist() == [128] * 3
    assert task.largest_batch(training, CLASSES, 64).labels.shape[1] < batch.labels.shape[1]
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


def training_on_gpu(case: str, folder: Path) -> tuple[TrainConfig, tuple[int, int]]:
    """A training of a paper's network, and two micro-batches that fit into any GPU, one twice the other."""
    common: dict[str, Any] = {"precision": "bf16", "micro_batch_size": "auto"}
    if case == "mask_rcnn_t":
        model, detection = ModelConfig(name="mask_rcnn_t"), DetectionConfig()
        return detections.training("none", folder, global_batch_size=8, model=model, detection=detection, **common), (
            2,
            4,
        )
    if case != "plain":
        common[case] = True
    return replace(automatic("none", folder, global_batch_size=256, model=ModelConfig()), **common), (16, 32)


def settle_on_gpu(case: str, folder: Path, port: int) -> tuple[object, bool, bool, int]:
    """What is found in memory for between two micro-batches; whether no trace is left; whether the limit is lifted.

    The training's own engine then takes two steps within the same limit: how many allocations were refused in them.
    """
    os.environ |= environment(0, 1, port)
    world = join_world()
    try:
        training, sizes = training_on_gpu(case, folder)
        network, task = build_model(training, CLASSES), find_task(training.task)
        transform = task.device_transform(training, CLASSES)
        recorder = Recorder(folder, is_main=True, world_size=1)
        check_kernels(training, world, folder, recorder)

        def inputs(samples: int) -> tuple[torch.Tensor, ...]:
            return transform(task.largest_batch(training, CLASSES, samples), world.device)

        memory, peaks = MeasuredGpu(world.device), []
        for samples in sizes:
            assert trial.fits(network, training, world, partial(inputs, samples), memory)
            peaks.append(memory.peak)
        limit = sum(peaks) // 2
        trial.open_memory = lambda device: MeasuredGpu(device, limit)
        before = torch.cuda.memory_allocated(), torch.cuda.get_rng_state().tolist()
        settled = settle_micro_batch(training, network, transform, CLASSES, folder, world, recorder)
        is_unchanged = before == (torch.cuda.memory_allocated(), torch.cuda.get_rng_state().tolist())
        is_lifted = torch.cuda.get_per_process_memory_fraction() == 1.0
        found = settled.micro_batch_size
        assert isinstance(found, int)
        refused = trial.refused_allocations(world.device)
        with MeasuredGpu(world.device, limit).bounded():
            engine = Engine(network, settled, world)
            try:
                for _ in range(2):
                    engine.step((inputs(found) for _ in range(engine.accumulation)), lr=1e-3, seed=0)
            finally:
                engine.close()
        return found, is_unchanged, is_lifted, trial.refused_allocations(world.device) - refused
    finally:
        leave_world()


@pytest.mark.gpu
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("case", "found"), [("plain", 16), ("compile", 16), ("cuda_graphs", 16), ("mask_rcnn_t", 2)])
def test_a_gpu_finds_what_fits_and_the_training_fits_too(case: str, found: int, tmp_path: Path):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        assert fresh.submit(settle_on_gpu, case, tmp_path, free_port()).result() == (found, True, True, 0)
