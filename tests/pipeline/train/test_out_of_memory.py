"""A rank that runs out of memory: what counts as that, what is said, and what the run keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pipeline.config.checks import check
from pipeline.config.schema import ConfigError, ModelConfig, TrainConfig
from pipeline.config.serialise import difference
from pipeline.engine import trial
from pipeline.engine.distributed import World
from pipeline.run.micro_batch import FoundMicroBatch, read_micro_batch, with_found, write_micro_batch
from pipeline.train import out_of_memory
from pipeline.train.out_of_memory import OutOfMemory, what_helps
from tests.support.memory import LimitedMemory
from tests.support.tracking_runs import config_json, write_checkpoint

RANK = World(rank=1, local_rank=1, size=2, device=torch.device("cpu"))
NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation")


def run_with(run_dir: Path, micro_batch_size: int | Literal["auto"], **fields: Any) -> TrainConfig:
    model = ModelConfig(name="transxnet_n")
    training = TrainConfig(
        steps=100, global_batch_size=32, micro_batch_size=micro_batch_size, precision="fp32", model=model, **fields
    )
    config_json(run_dir, training, None)
    return training


def said(run_dir: Path, training: TrainConfig, error: RuntimeError | None = None) -> str:
    watch = OutOfMemory(run_dir, RANK)
    watch.begin(training)
    explained = watch.explain(error or torch.OutOfMemoryError("no room"))
    assert explained is not None
    assert "\n" not in str(explained)
    return str(explained)


@pytest.mark.parametrize("other", [{}, {"compile": True}, {"cuda_graphs": True}, {"gradient_checkpointing": True}])
def test_what_is_offered_to_a_run_is_taken_by_its_checks(tmp_path: Path, other: dict[str, bool]):
    training = run_with(tmp_path / "run", 8, **other)
    in_run, another = said(tmp_path / "run", training).split("; or with another --run-dir: ")
    assert another == "--train.precision bf16, a smaller --train.model.image-size, a smaller --train.model.name"
    offered = in_run.partition("the run goes on when it is launched again with one of: ")[2].split(", ")
    assert offered[:2] == ["--train.micro-batch-size 4", "--train.micro-batch-size auto"]
    for flags in offered:
        changed = with_flags(training, flags)
        check(changed, RANK.size)
        assert not difference(training, changed)
    assert any("gradient-checkpointing" in flags for flags in offered) == ("gradient_checkpointing" not in other)


def with_flags(training: TrainConfig, flags: str) -> TrainConfig:
    values: dict[str, Any] = {
        "--train.micro-batch-size 4": {"micro_batch_size": 4},
        "--train.micro-batch-size auto": {"micro_batch_size": "auto"},
        "--train.gradient-checkpointing": {"gradient_checkpointing": True},
        "--train.gradient-checkpointing --train.no-compile": {"gradient_checkpointing": True, "compile": False},
        "--train.gradient-checkpointing --train.no-cuda-graphs": {"gradient_checkpointing": True, "cuda_graphs": False},
    }
    return replace(training, **values[flags])


def test_auto_is_offered_where_it_would_find_another_number(tmp_path: Path):
    training = run_with(tmp_path / "run", 8)
    assert "auto" in said(tmp_path / "run", training)
    write_micro_batch(tmp_path / "run", FoundMicroBatch(micro_batch_size=8, world_size=2))
    assert "auto" not in said(tmp_path / "run", training)
    before = OutOfMemory(tmp_path / "run", RANK).explain(torch.OutOfMemoryError("no room"))
    assert "has run out of memory before the first step (no room)" in str(before)
    assert "micro-batch-size" not in str(before)


def test_a_number_that_was_found_is_corrected_while_there_is_no_checkpoint(tmp_path: Path):
    run_dir = tmp_path / "run"
    given = run_with(run_dir, "auto")
    write_micro_batch(run_dir, FoundMicroBatch(micro_batch_size=8, world_size=2, decided_by="rank 0 on n1"))
    training = with_found(given, 2, read_micro_batch(run_dir))
    # Both ranks run out of memory in one step.
    for _ in range(2):
        assert said(run_dir, training).endswith("; as it is, it takes micro-batches of 4 when it is launched again")
    found = read_micro_batch(run_dir)
    assert found is not None
    assert found.micro_batch_size == 4
    assert found.decided_by.endswith(", where a larger one ran out of memory in a step")
    write_checkpoint(run_dir, 20)
    assert "one of: --train.micro-batch-size 2, --train.grad" in said(run_dir, with_found(given, 2, found))
    assert read_micro_batch(run_dir) == found


def test_an_error_of_a_library_counts_if_memory_was_refused_meanwhile(tmp_path: Path, monkeypatch):
    training = run_with(tmp_path / "run", 8)
    watch = OutOfMemory(tmp_path / "run", RANK)
    watch.begin(training)
    assert watch.explain(NO_ENGINE) is None
    monkeypatch.setattr(out_of_memory, "refused_allocations", lambda device: 1)
    assert "with micro-batches of 8 (GET was unable" in str(watch.explain(NO_ENGINE))
    assert watch.explain(RuntimeError("shapes differ")) is None
    watch.begin(training)
    assert watch.explain(NO_ENGINE) is None


class RefusingMemory(LimitedMemory):
    """Memory that has refused another allocation each time it is asked, or none."""

    def __init__(self, *, refuses: bool) -> None:
        super().__init__(float("inf"))
        self._step, self._count = int(refuses), 0

    def refused(self) -> int:
        self._count += self._step
        return self._count


@pytest.mark.parametrize("refuses", [True, False])
def test_a_micro_batch_does_not_fit_if_memory_was_refused_without_an_error_of_memory(refuses: bool, monkeypatch):
    def fits() -> bool:
        return trial.fits(torch.nn.Identity(), TrainConfig(), RANK, tuple, RefusingMemory(refuses=refuses))

    monkeypatch.setattr(trial, "_take_steps", lambda *_: None)
    assert fits() is not refuses

    def fail(*_: object) -> None:
        raise NO_ENGINE

    monkeypatch.setattr(trial, "_take_steps", fail)
    if refuses:
        assert not fits()
    else:
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            fits()


def test_a_compiled_network_is_tried_in_plain_pytorch():
    import transxnet

    network = transxnet.build("transxnet_n", image_size=32)
    trial.leave_kernels(network)
    assert {module.backend for module in network.modules() if hasattr(module, "backend")} == {"reference"}


def test_norms_of_one_rank_keep_what_those_of_all_ranks_do():
    from transxnet.layers import ScaledResidual

    kept = []
    for kind in ("one rank", "in its place", "all ranks"):
        module: torch.nn.Module = ScaledResidual(4, 1.0, 0.0, "auto").train()
        if kind == "in its place":
            trial.keep_as_synchronised(module, torch.empty(0))
        elif kind == "all ranks":
            module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)
        memory, x = LimitedMemory(float("inf")), torch.ones(2, 4, 8, 8, requires_grad=True)
        with memory.bounded():
            out = module(x, (x, None, None))
        kept.append(memory.used)
        out.sum().backward()
    one_rank, in_its_place, all_ranks = kept
    assert one_rank < in_its_place == all_ranks


def test_a_training_in_bf16_that_recomputes_needs_another_run():
    training = TrainConfig(gradient_checkpointing=True)
    other = "a smaller --train.model.image-size, a smaller --train.model.name"
    assert what_helps(training, []) == f"what helps: with another --run-dir: {other}"
    with pytest.raises(ConfigError):
        check(replace(training, compile=True), 1)
