"""The kernels on a machine without a GPU, run by triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels' tests run directly on the GPU here"),
    pytest.mark.timeout(1800),
]

KERNELS = Path(__file__).parent


def _pytest(*arguments: str) -> None:
    """Run tests in a process of their own: triton decides at its import whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore", *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        cwd=KERNELS.parents[2],
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def _operator_tests() -> list[str]:
    """Return the test files of the operators, without those of the compiler, the interpreter and whole models."""
    others = ("test_compile.py", "test_interpreter.py", "test_model.py")
    files = [str(path) for path in sorted(KERNELS.rglob("test_*.py")) if path.name not in others]
    assert len(files) > 10
    return files


@pytest.mark.thorough
def test_operators_match_their_references():
    _pytest(*_operator_tests())


@pytest.mark.slow
def test_operators_match_their_references_on_more_shapes():
    _pytest("-m", "slow", "--timeout", "1500", *_operator_tests())


@pytest.mark.slow
def test_a_tiny_model_matches_the_reference_backend():
    _pytest(str(KERNELS / "test_model.py"))
