"""Launches and bytes of a training step, counted on meta tensors: what the kernels save cannot be lost unnoticed."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from tests.benchmarks.traffic import count_step


def test_kernels_move_fewer_bytes_in_no_more_launches():
    reference, kernels = (count_step("transxnet_t", backend, batch=128) for backend in ("reference", "triton"))
    print(reference.launches.total(), kernels.launches.total())
    assert reference.moved.total() <= 110e9
    assert kernels.moved.total() <= 66e9
    assert reference.launches.total() <= 3450
    assert kernels.launches.total() <= 3080
    assert kernels.forward_launches <= 1120
