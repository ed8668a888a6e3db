"""Kernels compiled ahead of time for GPUs that need not be present: no register spills, shared memory within bounds.

The launches are those of a training step in bf16, recorded on meta tensors: at 224 px and batch 128, and of attention
at 384 px and a size of dense maps. Spilled registers go to a program's stack; these kernels have no other use for one.
"""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from tests.benchmarks.traffic import count_step
from tests.transxnet.kernels.aot import Launch

SHARED_LIMIT = {80: 163 * 1024 // 2, 90: 227 * 1024 // 2}
"""Half of a multiprocessor's shared memory in bytes, so that at least two programs fit."""
REGISTERS = 65536
"""Registers of a multiprocessor."""


@pytest.fixture(autouse=True)
def compiled_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep machine code in pytest's cache, so that a kernel is compiled again only after a change."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(request.config.cache.mkdir("triton")))


def _attention_launches(model: str, dtype: torch.dtype) -> list[Launch]:
    """Return the launches of attention to many keys: at 384 px, and at another size than the table's."""
    found = []
    for size, table_size in ((384, 384), (600, 224)):
        sizes: dict[str, Any] = {"size": size, "image_size": table_size, "depths": (1, 1, 1, 1)}
        step = count_step(model, "triton", batch=2, dtype=dtype, **sizes)
        found += [Launch(*launch) for launch in step.kernels if "_stream_" in launch[0].fn.__name__]
    return found


def _launches(model: str) -> list[Launch]:
    """Return the distinct launches of a training step; one block in each stage has them all.

    The merge of statistics over ranks, which one process does not launch, is added.
    """
    step = count_step(model, "triton", batch=128, depths=(1, 1, 1, 1))
    distinct = {}
    for launch in (*(Launch(*launch) for launch in step.kernels), *_attention_launches(model, torch.bfloat16)):
        distinct.setdefault(launch.specialisation(), launch)
        if launch.name == "_merge_kernel":
            for option in ("TO_PARTIAL", "FROM_RANKS"):
                merge = Launch(launch.kernel, {**launch.arguments, option: True})
                distinct.setdefault(merge.specialisation(), merge)
    return list(distinct.values())


def _hardest(launches: Iterable[Launch]) -> list[Launch]:
    """Return one launch of each kernel: with the most options on, and of those on the smallest maps.

    At 7 px rows have an odd length, so that values are loaded one by one, which takes the most registers.
    """

    def hardness(launch: Launch) -> tuple[int, int]:
        constants = launch.constants
        return sum(value is True for value in constants.values()), -constants.get("H", constants.get("HW", 0))

    hardest: dict[object, Launch] = {}
    for launch in launches:
        best = hardest.get(launch.kernel)
        if best is None or hardness(launch) > hardness(best):
            hardest[launch.kernel] = launch
    return list(hardest.values())


def _check(launches: Iterable[Launch], capability: int, subtests: pytest.Subtests) -> None:
    for launch in launches:
        with subtests.test(launch.name, **launch.constants):
            usage = launch.usage(capability)
            assert usage.stack_bytes == 0, f"{launch.name} spills registers on sm_{capability}: {usage}"
            assert usage.registers * 32 * usage.warps <= REGISTERS, f"no program fits on a multiprocessor: {usage}"
            assert usage.shared_bytes <= SHARED_LIMIT[capability], f"too much shared memory on sm_{capability}: {usage}"


@pytest.mark.thorough
def test_no_kernel_of_tiny_spills_registers(subtests: pytest.Subtests):
    launches = _hardest(_launches("transxnet_t"))
    assert len(launches) >= 37
    _check(launches, 90, subtests)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("model", ["transxnet_t", "transxnet_b"])
def test_no_launch_of_a_training_step_spills_registers(model: str, capability: int, subtests: pytest.Subtests):
    _check(_launches(model), capability, subtests)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_to_many_keys_spills_no_registers_in_other_precisions(
    dtype: torch.dtype, capability: int, subtests: pytest.Subtests
):
    distinct = {launch.specialisation(): launch for launch in _attention_launches("transxnet_s", dtype)}
    assert len(distinct) >= 8
    _check(distinct.values(), capability, subtests)
