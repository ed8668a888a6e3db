"""Kernels that are broken on purpose are found and replaced, in triton's interpreter."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import transxnet
from transxnet.check.compilation import compile_ahead
from transxnet.check.operators import Operator, Shape
from transxnet.config import Backend

pytest.importorskip("triton", reason="triton is not installed")

FAULTS = {
    # A wrong constant: a hundredth of the input is added once more.
    "common/depthwise_conv.py": (
        "    return _ConvFunction.apply(x.contiguous(), weight, bias, True, False)",
        "    return _ConvFunction.apply(x.contiguous(), weight, bias, True, False) + 0.01 * x",
    ),
    # Not a number.
    "group_norm.py": ("tl.store(rstd_ptr + n, rstd)", "tl.store(rstd_ptr + n, rstd + float('nan'))"),
    # An operator that raises.
    "residual.py": (
        "    return _ScaledResidualFunction.apply(",
        "    raise RuntimeError('no such instruction')\n    return _ScaledResidualFunction.apply(",
    ),
    # A wrong constant in a kernel: the softmax is to another base.
    "osra/streaming.py": ("1.4426950408889634", "1.44"),
}
SCRIPT = """
import torch
import transxnet
from transxnet.check import prove
from transxnet.check.operators import OPERATORS
from transxnet.backend import left_to_pytorch

for verdict in prove(torch.device("cpu"), torch.float32, [o for o in OPERATORS if o.name in {names!r}]):
    print(verdict.line(), flush=True)
print("LEFT", *sorted(left_to_pytorch()))

def train(backend):
    torch.manual_seed(0)
    config = dict(depths=(1, 1, 1, 1), dims=(8, 8, 12, 16), num_heads=(1, 1, 2, 2), mlp_ratios=(2, 2, 2, 2))
    model = transxnet.build("transxnet_n", num_classes=3, image_size=32, backend=backend, **config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range({steps}):
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)

if {steps}:
    print("DIFFERENCE", (train("triton") - train("reference")).abs().max().item())
"""


def _run(package: Path, *command: str, status: int = 0) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", *command],
        env=environment, cwd=package.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout


def _lines(output: str) -> dict[str, str]:
    """Return the lines by their first word."""
    return {line.split()[0]: line for line in output.splitlines() if line}


def _broken_package(folder: Path, changes: dict[str, tuple[str, str]]) -> Path:
    """Copy the package, and change a line of its kernels."""
    package = folder / "transxnet"
    shutil.copytree(Path(transxnet.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (before, after) in changes.items():
        path = package / "kernels" / name
        text = path.read_text()
        assert before in text, name
        path.write_text(text.replace(before, after))
    return package


def test_operators_are_compiled_side_by_side_and_one_that_raises_is_left_for_the_comparison():
    shapes = [Shape(1, channels, 2, 2) for channels in (1, 2, 3)]
    both_run, ran = threading.Barrier(2), []

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            both_run.wait(timeout=20)
            ran.append(x.shape[1])
            return x

    def build(shape: Shape, backend: Backend) -> nn.Module:
        if shape == shapes[0]:
            raise RuntimeError("no such instruction")
        return Waiting()

    operators = [Operator("waiting", build, shape, shape) for shape in shapes]
    compile_ahead(operators, torch.device("cpu"), torch.float32, timed=False, threads=2)
    assert sorted(ran) == [2, 3]


@pytest.mark.gpu
def test_a_new_node_trusts_every_kernel_within_a_minute(tmp_path: Path):
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(transxnet.__file__).parents[1]),
    }
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "transxnet.check"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - start < 60, done.stdout


@pytest.mark.thorough
def test_an_operator_that_raises_or_gives_no_number_is_left_to_pytorch(tmp_path: Path):
    package = _broken_package(tmp_path, {name: FAULTS[name] for name in ("group_norm.py", "residual.py")})
    names = ("group_norm", "residual")
    found = _lines(_run(package, "-c", SCRIPT.format(names=names, steps=0)))
    assert found["LEFT"].split()[1:] == ["group_norm", "residual"]
    assert "its error is nan" in found["group_norm"]
    assert "RuntimeError: no such instruction" in found["residual"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_training_with_broken_kernels_is_that_of_the_reference(tmp_path: Path):
    package = _broken_package(tmp_path, {name: FAULTS[name] for name in list(FAULTS)[:3]})
    names = ("group_norm", "position", "residual", "enhancement")
    found = _lines(_run(package, "-c", SCRIPT.format(names=names, steps=2)))
    assert found["LEFT"].split()[1:] == ["group_norm", "position", "residual"]
    assert "left to PyTorch: its error is" in found["position"]
    assert "trusted" in found["enhancement"]
    assert float(found["DIFFERENCE"].split()[1]) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_command_trusts_every_kernel_but_the_broken_one(tmp_path: Path):
    name = "osra/streaming.py"
    out = _run(
        _broken_package(tmp_path, {name: FAULTS[name]}), "-m", "transxnet.check", "--precision", "fp32", status=1
    )
    left = [line.split()[0] for line in out.splitlines() if "left to PyTorch: its error" in line]
    assert left == ["attention_many_keys"], out
    assert "1 of 10 operators are left to PyTorch" in out
