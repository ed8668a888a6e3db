"""Upper bounds on launches and bytes of a training step of TransXNet-T, counted on meta tensors."""

from dataclasses import dataclass

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.benchmarks.traffic import count_step


@dataclass(frozen=True)
class Bounds:
    """Most GB and launches of either backend, and most bytes saved by the kernels relative to the reference."""

    reference_gb: float
    reference_launches: int
    kernels_gb: float
    kernels_launches: int
    saved: float


ONE_BLOCK_EACH = Bounds(28.3, 880, 12.0, 445, 0.52)
TINY = Bounds(107.7, 3700, 43.9, 1920, 0.50)


@pytest.mark.parametrize(
    ("depths", "bounds"),
    [
        pytest.param((1, 1, 1, 1), ONE_BLOCK_EACH, id="one block in each stage"),
        pytest.param((3, 3, 9, 3), TINY, id="transxnet_t", marks=pytest.mark.slow),
    ],
)
def test_kernels_move_fewer_bytes_in_fewer_launches(depths: tuple[int, ...], bounds: Bounds):
    reference, kernels = (
        count_step("transxnet_t", backend, batch=128, depths=depths) for backend in ("reference", "triton")
    )
    assert reference.moved.total() <= bounds.reference_gb * 1e9
    assert kernels.moved.total() <= bounds.kernels_gb * 1e9
    assert kernels.saved <= bounds.saved * reference.saved
    assert kernels.launches.total() <= bounds.kernels_launches < reference.launches.total() <= bounds.reference_launches
