"""The kernels on a machine without a GPU: run by triton's interpreter, and compiled for GPUs that are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import transxnet

pytest.importorskip("triton", reason="triton is not installed")

FOLDER = Path(__file__).parent / "kernels"


def _pytest(*arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore", *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, cwd=FOLDER.parents[2]
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs directly on the GPU here")
def test_operators_by_the_interpreter():
    """In a process of its own: triton decides at its import whether it interprets."""
    _pytest(str(FOLDER / "test_operators.py"), str(FOLDER / "test_sync.py"), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs directly on the GPU here")
def test_more_shapes_by_the_interpreter():
    """What the operators' own `slow` leaves out of the quick run."""
    _pytest(
        "-m", "slow", "--timeout", "1500", str(FOLDER / "test_operators.py"), TRITON_INTERPRET="1", OMP_NUM_THREADS="1"
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs directly on the GPU here")
def test_model_by_the_interpreter():
    """The whole network, forward and backward."""
    _pytest(str(FOLDER / "test_model.py"), TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


def test_triton_backend_says_where_it_runs():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    model = transxnet.transxnet_n(num_classes=3, image_size=32, backend="triton")
    with pytest.raises(ValueError, match=r"backend 'triton' needs.*CUDA device.*torch.float32 on cpu"):
        model(torch.zeros(2, 3, 32, 32))


def test_auto_is_the_reference_on_a_cpu():
    torch.manual_seed(0)
    auto = transxnet.transxnet_n(num_classes=3, image_size=32).eval()
    reference = transxnet.transxnet_n(num_classes=3, image_size=32, backend="reference").eval()
    reference.load_state_dict(auto.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(auto(x), reference(x))
