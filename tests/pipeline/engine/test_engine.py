"""Every ZeRO stage and precision trains as a plain PyTorch loop does, and resumes the checkpoints of the others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.store import CheckpointStore
from pipeline.config.schema import MixConfig, ModelConfig, OptimizerConfig, TrainConfig
from pipeline.engine.distributed import World
from pipeline.engine.ema import Ema
from pipeline.engine.engine import DTYPES, Engine
from pipeline.order.draws import step_seed
from pipeline.run.recorder import Recorder
from tests.support.networks import small_network
from tests.support.ranks import run_ranks

CLASSES, SIDE, MICRO, ACCUMULATION, WORLD, STEPS, LONG = 5, 64, 4, 2, 2, 2, 8
LR = 3e-4
DROPPING = ModelConfig(name="transxnet_n", image_size=SIDE, drop_path_rate=0.3)


def make_config(**changes: Any) -> TrainConfig:
    config = TrainConfig(
        global_batch_size=MICRO * ACCUMULATION * WORLD,
        micro_batch_size=MICRO,
        ema_decay=0.9,
        precision="fp32",
        model=ModelConfig(name="transxnet_n", image_size=SIDE, drop_path_rate=0.0),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        optimizer=OptimizerConfig(clip_grad_norm=5.0),
    )
    return replace(config, **changes)


def micro_batches(step: int, rank: int, micro: int, world: int = WORLD) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """This rank's micro-batches of a step; the samples of the step are the same for any number of ranks."""
    generator = torch.Generator().manual_seed(1000 + step)
    count = MICRO * ACCUMULATION * WORLD
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    targets = torch.softmax(2 * torch.randn(count, CLASSES, generator=generator), dim=1)
    mine_images, mine_targets = images[rank::world], targets[rank::world]
    return [(mine_images[i : i + micro], mine_targets[i : i + micro]) for i in range(0, len(mine_images), micro)]


def layer_decay(steps: int) -> float:
    """The long comparison has no layer decay, as the recipe; the short ones have."""
    return 1.0 if steps == LONG else 0.8


def micro_batch(steps: int) -> int:
    """The long comparison takes a rank's samples in one micro-batch, the short ones accumulate gradients."""
    return MICRO * ACCUMULATION if steps == LONG else MICRO


def plain_loop(precision: str, steps: int) -> dict[str, Any]:
    """The reference: one process with PyTorch and timm's optimizer, loss and weight average, without a schedule.

    BatchNorm sees each micro-batch by itself, as on a rank. `way` is how far the average is from the first weights.
    """
    # Imported here because it takes seconds, every rank imports this file, and none needs it.
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV2

    config = make_config()
    model = small_network(CLASSES, SIDE).train()
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    options: dict[str, Any] = {"weight_decay": config.optimizer.weight_decay}
    if steps != LONG:
        blocks = [(r"^stages\.(\d+)\.(?:downsample|position_bias)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        model.group_matcher = lambda coarse: {"stem": r"^patch_embed", "blocks": blocks}
        options["layer_decay"] = layer_decay(steps)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=LR, **options)
    for group in optimizer.param_groups:
        group["lr"] = LR * group.get("lr_scale", 1.0)
    average = ModelEmaV2(model, decay=config.ema_decay)
    criterion = SoftTargetCrossEntropy()
    losses, norms = [], []
    for step in range(steps):
        parts = [b for rank in range(WORLD) for b in micro_batches(step, rank, micro_batch(steps))]
        total = 0.0
        for images, targets in parts:
            with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
                logits = model(images)
            loss = criterion(logits.float(), targets)
            (loss / len(parts)).backward()
            total += loss.item() / len(parts)
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)))
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
        losses.append(total)
    ema = {name: value.detach() for name, value in average.module.named_parameters()}
    return {"losses": losses, "norms": norms, "ema": ema, "way": distance(start, ema)}


class Trained:
    """An engine with its weight average and checkpoint saver in a run directory."""

    def __init__(self, config: TrainConfig, world: World, run_dir: Path) -> None:
        self.config, self.world = config, world
        run_dir.mkdir(exist_ok=True)
        network = small_network(CLASSES, SIDE, config.model.drop_path_rate or 0.0)
        self.engine = Engine(network, config, world)
        partitioned = config.zero_stage == 3
        self.ema = Ema(self.engine.local_weights(), self.engine.network, config.ema_decay, partitioned=partitioned)
        recorder = Recorder(run_dir, is_main=world.is_main, world_size=world.size)
        self.saver = Saver(CheckpointStore(run_dir), self.engine, self.ema, recorder, every=100, keep=9, facts=dict)

    def steps(self, first: int, last: int) -> list[tuple[float, float]]:
        from pipeline.engine.distributed import sum_over_ranks

        out = []
        for step in range(first, last):
            batches = micro_batches(step, self.world.rank, self.config.micro_batch(self.world.size), self.world.size)
            seed = step_seed(self.config, step, self.world.rank)
            loss, norm = self.engine.step(iter(batches), lr=LR, seed=seed)
            self.ema.update()
            [total] = sum_over_ranks([loss])
            out.append((total / self.world.size, norm))
        return out


def steps_of(stage: int, precision: str) -> int:
    return LONG if (stage, precision) == (1, "fp32") else STEPS


def train_all(world: World, variants: list[tuple[int, str]], folder: str) -> dict[tuple[int, str], Any]:
    """Train every variant on all ranks."""
    results = {}
    for stage, precision in variants:
        steps = steps_of(stage, precision)
        config = make_config(
            zero_stage=stage,
            precision=precision,
            micro_batch_size=micro_batch(steps),
            optimizer=OptimizerConfig(clip_grad_norm=5.0, layer_decay=layer_decay(steps)),
        )
        trained = Trained(config, world, Path(folder))
        if precision == "fp16":
            trained.engine.load_scalars({"optimizer_steps": 0, "loss_scale": 128.0, "good_steps": 0})
        curve = trained.steps(0, steps)
        results[stage, precision] = {"curve": curve, "ema": {k: v.clone() for k, v in trained.ema.full_state().items()}}
    return results


# DeepSpeed's autocast is a setting of the process that no engine resets: fp32 comes first.
SHORT = [(2, "fp32")]
VARIANTS = [(1, "fp32"), (3, "fp32")]
STAGES = [(0, "fp32"), (1, "bf16")]
PRECISIONS = [*((stage, "bf16") for stage in (0, 2, 3)), *((stage, "fp16") for stage in (0, 1, 2, 3))]
TOLERANCE = {"fp32": 1e-6, "bf16": 3e-4, "fp16": 3e-4}


APART = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.2}
"""Largest distance between two averages, as a share of the distance from the first weights."""


@torch.no_grad()
def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Distance between two models without their biases, whose gradient before a BatchNorm is rounding alone."""
    return float(torch.stack([(a[n] - b[n]).norm() for n in b if b[n].ndim > 1]).norm())


@pytest.mark.parametrize(
    "variants",
    [
        SHORT,
        pytest.param(VARIANTS, marks=pytest.mark.thorough),
        pytest.param(STAGES, marks=pytest.mark.thorough),
        pytest.param(PRECISIONS, marks=pytest.mark.slow),
    ],
)
def test_stages_and_precisions_agree_with_plain_pytorch(variants: list[tuple[int, str]], tmp_path: Path):
    results, other = run_ranks(train_all, WORLD, variants, str(tmp_path))
    wanted = {(precision, steps_of(stage, precision)) for stage, precision in variants}
    references = {each: plain_loop(*each) for each in wanted}
    for (stage, precision), result in results.items():
        reference, tolerance = references[precision, steps_of(stage, precision)], TOLERANCE[precision]
        losses, norms = zip(*result["curve"], strict=True)
        assert losses == pytest.approx(reference["losses"], rel=tolerance), (stage, precision)
        assert norms == pytest.approx(reference["norms"], rel=10 * tolerance), (stage, precision)
        assert distance(result["ema"], reference["ema"]) <= APART[precision] * reference["way"]
        for name, value in result["ema"].items():
            assert torch.equal(value, other[stage, precision]["ema"][name]), f"ranks differ in {name}"


def interrupted(world: World, before: int, after: int, precision: str, run_dir: str) -> dict[str, Any]:
    """Train and save a step under stage `before`, and resume it with a new engine under stage `after`."""
    settings = {"precision": precision, "micro_batch_size": MICRO * ACCUMULATION}
    first = Trained(make_config(zero_stage=before, **settings), world, Path(run_dir))
    first.steps(0, 1)
    first.saver.start(1, None)
    first.saver.finish()
    going_on = first.steps(1, 3)
    second = Trained(make_config(zero_stage=after, **settings), world, Path(run_dir))
    assert second.saver.restore() == 1
    resumed = second.steps(1, 3)
    buffers = [dict(t.engine.network.named_buffers()) for t in (first, second)]
    same_buffers = all(torch.equal(buffers[0][n], buffers[1][n]) for n in buffers[0])
    states = [t.ema.full_state() for t in (first, second)]
    same_ema = all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    return {"going_on": going_on, "resumed": resumed, "same": same_buffers and same_ema}


def resume_all(world: World, stages: list[tuple[int, int, str]], folder: str) -> list[tuple[int, int, Any]]:
    return [
        (before, after, interrupted(world, before, after, precision, f"{folder}/{before}{after}{precision}"))
        for before, after, precision in stages
    ]


def recompute_all(world: World, folder: str) -> dict[int, list[Any]]:
    """A step under stages 1 and 3, each without and with gradient checkpointing: curve and state."""
    results = {}
    for stage in (1, 3):
        results[stage] = []
        for recompute in (False, True):
            changes = {"zero_stage": stage, "gradient_checkpointing": recompute}
            trained = Trained(make_config(model=DROPPING, **changes), world, Path(folder))
            curve = trained.steps(0, 1)
            state = {**trained.ema.full_state(), **dict(trained.engine.network.named_buffers())}
            results[stage].append((curve, {name: value.clone() for name, value in state.items()}))
    return results


def loss_of_dropping(world: World, folder: str) -> float:
    """The loss of a step whose micro-batches hold the same samples on any number of ranks, as the loader deals them."""
    from pipeline.engine.distributed import sum_over_ranks

    config = make_config(model=DROPPING)
    [(images, targets)] = micro_batches(0, 0, MICRO * ACCUMULATION * WORLD, 1)
    count = ACCUMULATION * WORLD
    mine = [(images[number::count], targets[number::count]) for number in range(world.rank, count, world.size)]
    engine = Trained(config, world, Path(folder)).engine
    loss, _ = engine.step(iter(mine), lr=LR, seed=step_seed(config, 0, world.rank))
    return sum_over_ranks([loss])[0] / world.size


@pytest.mark.thorough
def test_a_micro_batch_drops_the_same_on_any_number_of_ranks(tmp_path: Path):
    [alone] = run_ranks(loss_of_dropping, 1, str(tmp_path))
    for ranks in (2, 4):
        assert run_ranks(loss_of_dropping, ranks, str(tmp_path)) == [pytest.approx(alone, rel=1e-6)] * ranks


@pytest.mark.thorough
def test_gradient_checkpointing_changes_nothing(tmp_path: Path):
    for stage, (kept, recomputed) in run_ranks(recompute_all, WORLD, str(tmp_path))[0].items():
        assert recomputed[0] == kept[0], stage
        assert all(torch.equal(recomputed[1][name], value) for name, value in kept[1].items()), stage


@pytest.mark.parametrize(
    "stages",
    [[(1, 1, "fp32"), (3, 0, "fp32")], pytest.param([(1, 1, "bf16")], marks=pytest.mark.thorough)],
    ids=["fp32", "bf16"],
)
def test_resumed_state_continues_bit_for_bit(stages: list[tuple[int, int, str]], tmp_path: Path):
    for before, after, result in run_ranks(resume_all, WORLD, stages, str(tmp_path))[0]:
        if before == after:
            assert result["resumed"] == result["going_on"], (before, after)
            assert result["same"], (before, after)
        else:
            for (loss, norm), (expected_loss, expected_norm) in zip(result["resumed"], result["going_on"], strict=True):
                assert loss == pytest.approx(expected_loss, rel=1e-6), (before, after)
                assert norm == pytest.approx(expected_norm, rel=1e-4), (before, after)
