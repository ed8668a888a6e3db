"""A step with CUDA graphs is the step without, bit for bit, and leaves everything around the two graphs as it was.

On a CPU, what stands for the graphs computes the recorded parts anew, into the tensors of the recording: inputs,
gradients, loss scale, accumulation, random draws and statistics go the way they go on a GPU.
"""

import math
import multiprocessing
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.store import CheckpointStore
from pipeline.common.errors import TrainingError
from pipeline.config.schema import MixConfig, ModelConfig, OptimizerConfig, TrainConfig
from pipeline.engine.collectives import CollectiveTimer
from pipeline.engine.cuda_graphs import Graphed, Part, Record, Recorded, record_cuda_graphs
from pipeline.engine.distributed import World, join_world, leave_world
from pipeline.engine.ema import Ema
from pipeline.engine.engine import Engine
from pipeline.order.draws import step_seed
from pipeline.run import directory as run_directory
from pipeline.run.recorder import Recorder
from pipeline.train.loop import Training
from pipeline.train.memory_snapshot import NoSnapshot
from pipeline.train.model import build_model
from tests.support.networks import small_network
from tests.support.ranks import environment, free_port, run_ranks

CLASSES, MICRO, ACCUMULATION, STEPS = 5, 2, 2, 2


class Recordable(TorchDispatchMode):
    """Raises for an operation that no CUDA graph can record: a value on the host, a shape that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
        if tags & set(func.tags) or "lift_fresh" in str(func):
            raise AssertionError(f"{func} cannot be recorded")
        return func(*args, **(kwargs or {}))


recordings: "weakref.WeakSet[Callable[[], None]]" = weakref.WeakSet()
"""Replays of recordings that were not released."""


def recorded_on_cpu(
    first: Part, second: Part, watch: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> tuple[Recorded, Recorded]:
    """Stands for `record_cuda_graphs`: both parts run once before; a replay overwrites the recorded results."""

    def recorded(part: Part) -> Recorded:
        with watch():
            results = part()

        def replay() -> None:
            for kept, value in zip(results, part(), strict=True):
                kept.copy_(value)

        recordings.add(replay)
        return results, replay

    first()
    second()
    return recorded(first), recorded(second)


class Everywhere(torch.autograd.Function):
    """The sum over all ranks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    backward = forward


class NormWithOthers(nn.BatchNorm2d):
    """Stands for SyncBatchNorm: the ranks exchange values in its forward and backward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.1 * Everywhere.apply(x.mean((0, 2, 3), keepdim=True))


def network_with_others() -> nn.Module:
    """A small network whose stem exchanges values with the other ranks."""
    network = small_network(CLASSES, 32, drop_path_rate=0.3)
    network.patch_embed.norm = NormWithOthers(8)
    return network


class Trained:
    """An engine with its weight average and checkpoint saver in a run directory."""

    def __init__(self, config: TrainConfig, world: World, run_dir: Path, record: Record) -> None:
        self.config, self.world = config, world
        run_dir.mkdir(exist_ok=True)
        network = build_model(config, CLASSES) if world.device.type == "cuda" else network_with_others()
        self.engine = Engine(network, config, world, record)
        if config.precision == "fp16":
            self.engine.load_scalars({"optimizer_steps": 0, "loss_scale": 16.0, "good_steps": 0})
        self.ema = Ema(self.engine.local_weights(), self.engine.network, 0.9, partitioned=False)
        self.saver = Saver(
            CheckpointStore(run_dir),
            self.engine,
            self.ema,
            Recorder(run_dir, is_main=world.is_main, world_size=world.size),
            every=100,
            keep=9,
            facts=dict,
        )

    def batches(self, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(100 * step + self.world.rank)
        side, device = self.config.model.image_size, self.world.device
        images = torch.randn(ACCUMULATION, MICRO, 3, side, side, generator=generator).to(device)
        targets = torch.softmax(2 * torch.randn(ACCUMULATION, MICRO, CLASSES, generator=generator), -1).to(device)
        if self.config.precision == "fp16" and not step:
            targets *= 2**14  # overflows fp16 at the first step
        return list(zip(images, targets, strict=True))

    def curve(self, first: int, last: int) -> list[tuple[float, float, float]]:
        """(Loss, gradient norm, loss scale) of each step from `first` to before `last`."""
        rows = []
        for step in range(first, last):
            seed = step_seed(self.config, step, self.world.rank)
            loss, norm = self.engine.step(iter(self.batches(step)), lr=1e-3, seed=seed)
            self.ema.update()
            rows.append((loss, norm, self.engine.scaler.scale))
        return rows

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of weights, optimizer moments, averaged weights and BatchNorm statistics, by name."""
        parts = self.engine.fragments()
        tensors = {f"{kind} {p.name}": getattr(p, kind) for p in parts for kind in ("weight", "exp_avg", "exp_avg_sq")}
        tensors |= {w.name: w.values for w in self.engine.local_weights()}
        tensors |= {f"average {name}": value for name, value in self.ema.full_state().items()}
        tensors |= dict(self.engine.network.named_buffers())
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def config_of(stage: int, precision: Any, size: int, backend: Any = "auto", side: int = 32) -> TrainConfig:
    return TrainConfig(
        global_batch_size=MICRO * ACCUMULATION * size,
        micro_batch_size=MICRO,
        zero_stage=cast("Any", stage),
        precision=precision,
        model=ModelConfig(name="transxnet_n", image_size=side, drop_path_rate=0.3, backend=backend),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        optimizer=OptimizerConfig(clip_grad_norm=1.0),
    )


def without_and_with(config: TrainConfig, world: World, folder: Path, record: Record) -> list[tuple[Any, Any]]:
    """Curve and state without graphs, with graphs, with graphs after a return to a checkpoint, and resumed from it."""
    graphs = replace(config, cuda_graphs=True)
    plain = Trained(config, world, folder, record)
    curve = plain.curve(0, 1)
    plain.saver.start(1, None)
    plain.saver.finish()
    found = [(curve + plain.curve(1, STEPS), plain.state())]
    graphed = Trained(graphs, world, folder, record)
    found.append((graphed.curve(0, STEPS), graphed.state()))
    for trained in (graphed, Trained(graphs, world, folder, record)):
        assert trained.saver.restore() == 1
        found.append((curve + trained.curve(1, STEPS), trained.state()))
        trained.engine.close()
    assert not recordings
    return found


def assert_same(found: list[tuple[Any, Any]], what: object) -> None:
    (curve, state), *others = found
    for way, (other_curve, other_state) in zip(("with", "gone back", "resumed"), others, strict=True):
        assert other_curve == curve, (what, way)
        differing = [name for name, value in state.items() if not torch.equal(value, other_state[name])]
        assert not differing, (what, way, len(differing), differing[:3])


def all_ways(world: World, variants: list[tuple[int, str]], folder: str) -> dict[tuple[int, str], Any]:
    watched = partial(recorded_on_cpu, watch=Recordable)
    return {
        (stage, precision): without_and_with(
            config_of(stage, precision, world.size), world, Path(folder) / f"{stage}{precision}", watched
        )
        for stage, precision in variants
    }


# DeepSpeed's autocast is a setting of the process that no engine resets: fp32 comes first.
VARIANTS = [(1, "fp16")]
OTHERS = [(stage, precision) for precision in ("fp32", "bf16", "fp16") for stage in (0, 1, 2)]


@pytest.mark.parametrize(
    "variants", [pytest.param(VARIANTS, marks=pytest.mark.thorough), pytest.param(OTHERS, marks=pytest.mark.slow)]
)
def test_a_step_is_the_same_with_graphs_and_without(variants: list[tuple[int, str]], tmp_path: Path):
    for ways in run_ranks(all_ways, 2, variants, str(tmp_path)):
        for (stage, precision), found in ways.items():
            assert_same(found, (stage, precision))
            finite = [math.isfinite(norm) for _, norm, _ in found[0][0]]
            assert finite[-1], "the last step is an update"
            assert finite[0] == (precision != "fp16"), "under fp16 the first step overflows"


def on_gpu(rank: int, size: int, precision: str, backend: str, folder: str, port: int) -> list[tuple[Any, Any]]:
    os.environ.pop("DS_ACCELERATOR", None)
    os.environ |= environment(rank, size, port)
    torch.backends.cudnn.deterministic = True
    world = join_world()
    try:
        config = config_of(1, precision, size, backend, side=224)
        return without_and_with(config, world, Path(folder), record_cuda_graphs)
    finally:
        leave_world()


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gpus_compute_the_same_with_graphs_and_without(precision: str, backend: str, size: int, tmp_path: Path):
    """Bit for bit: the same kernels on the same values, and a sum of two ranks has one order.

    At 224 px no kernel of the reference adds atomically. Two ranks have SyncBatchNorms in the graphs, and part.
    """
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} GPUs")
    port = free_port()
    with ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn")) as fresh:
        ranks = [fresh.submit(on_gpu, rank, size, precision, backend, str(tmp_path), port) for rank in range(size)]
        for rank in ranks:
            assert_same(rank.result(), (precision, backend))


class Square(nn.Module):
    """Mean square of the weighted inputs `[N, 2]`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight * x).square().mean()


def another_shape(model: Graphed, x: torch.Tensor) -> None:
    model(x[:1])


def another_dtype(model: Graphed, x: torch.Tensor) -> None:
    model(x.double())


def weights_elsewhere(model: Graphed, x: torch.Tensor) -> None:
    weight = model.model.get_parameter("weight")
    weight.data = weight.data.clone()
    model(x)


def backward_too_late(model: Graphed, x: torch.Tensor) -> None:
    loss = model(x)
    model(x)
    loss.backward()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (another_shape, r"\(1, 2\) torch.float32 where CUDA graphs were recorded with \(4, 2\)"),
        (another_dtype, "torch.float64 where .* torch.float32: leave out --train.cuda-graphs"),
        (weights_elsewhere, "weights have moved"),
        (backward_too_late, "another loss was computed"),
    ],
)
def test_inputs_that_do_not_fit_the_recording_are_refused(act: Callable[[Graphed, torch.Tensor], None], words: str):
    model, x = Graphed(Square(), recorded_on_cpu), torch.randn(4, 2)
    model(x).backward()
    with pytest.raises((ValueError, RuntimeError), match=words):
        act(model, x)


def test_gradients_add_up_and_losses_stay():
    model, plain = Graphed(Square(), recorded_on_cpu), Square()
    losses, expected = [], []
    for number in range(3):
        x = torch.full((4, 2), 1.0 + number)
        for made, kept in ((model, losses), (plain, expected)):
            kept.append(made(x))
            (kept[-1] * 2**number / 3).backward()
    assert [loss.item() for loss in losses] == [loss.item() for loss in expected]
    assert torch.equal(cast("torch.Tensor", model.model.get_parameter("weight").grad), cast("Any", plain.weight.grad))


def test_released_graphs_are_freed_and_recorded_again():
    recordings.clear()
    model, x = Graphed(Square(), recorded_on_cpu), torch.randn(4, 2)
    loss = model(x)
    assert len(recordings) == 2
    model.release()
    assert not recordings
    weight = model.model.get_parameter("weight")
    weight.data = 2 * weight.data
    assert model(x).item() == 4 * loss.item()


def test_cuda_graphs_are_refused_on_a_cpu(tmp_path: Path):
    run_directory.prepare(tmp_path / "run", TrainConfig(cuda_graphs=True), {})
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    with pytest.raises(TrainingError, match=r"--train\.cuda-graphs needs GPUs"):
        Training(tmp_path / "run", world, cast("Any", None), None, CollectiveTimer(), NoSnapshot())
