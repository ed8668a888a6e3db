"""Upper bounds on launches and bytes of a training step, counted on meta tensors."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.benchmarks.traffic import count_step


def test_kernels_move_fewer_bytes_in_no_more_launches():
    reference, kernels = (count_step("transxnet_t", backend, batch=128) for backend in ("reference", "triton"))
    for backend, counted in (("reference", reference), ("kernels", kernels)):
        forward, launches = counted.forward_launches, counted.launches.total()
        print(f"{backend}: {forward} + {launches - forward} launches, {counted.moved.total() / 1e9:.1f} GB")
    assert reference.moved.total() <= 107e9
    assert kernels.moved.total() <= 44.8e9
    assert kernels.saved <= 0.50 * reference.saved
    assert kernels.launches.total() <= 1920 < reference.launches.total() <= 3600
