"""The verdicts on this node's kernels, kept in a file, and their use by a process."""

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from transxnet.backend import leave_to_pytorch, left_to_pytorch
from transxnet.check.proof import Verdict, prove

__all__ = ["CACHE_VARIABLE", "check_kernels", "report_lines", "store_path"]

CACHE_VARIABLE = "TRANSXNET_CACHE"
"""Environment variable with the folder of the files; by default `~/.cache/transxnet`."""


def store_path(device: torch.device, dtype: torch.dtype) -> Path:
    """Return the file of verdicts of this node, GPU model, driver, torch, triton, package and precision."""
    import triton

    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    gpu = (torch.cuda.get_device_name(device), _driver()) if device.type == "cuda" else ("interpreter", "")
    parts = (*gpu, torch.__version__, triton.__version__, str(dtype), digest.hexdigest())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "transxnet")
    return folder / f"kernels-{socket.gethostname()}-{str(dtype).removeprefix('torch.')}-{key}.json"


def _driver() -> str:
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return str(torch.version.cuda)
    return first


def check_kernels(device: torch.device, dtype: torch.dtype) -> tuple[Verdict, ...]:
    """Leave to PyTorch the operators whose kernels are wrong or slow on `device`; once a node, print a line for each.

    The first process on a node compares and times them, while others wait; then all read its file. On a GPU almost all
    of that time is compiling, about two minutes of a core, which the process's cores share. A folder that cannot be
    written costs every process the comparison. Later calls return the same verdicts and do nothing.
    """
    index = torch.cuda.current_device() if device.index is None and device.type == "cuda" else device.index
    return _check_once(torch.device(device.type, index or 0), dtype)


@functools.cache
def _check_once(device: torch.device, dtype: torch.dtype) -> tuple[Verdict, ...]:
    path = store_path(device, dtype)
    already = left_to_pytorch()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            verdicts = _read(path)
            if verdicts is None:
                print(f"comparing the kernels with PyTorch; the verdicts are kept in {path}", flush=True)
                verdicts = prove(device, dtype)
                _write(path, verdicts)
    except OSError as problem:
        print(f"comparing the kernels with PyTorch; {path} cannot be written: {problem.strerror}", flush=True)
        verdicts = prove(device, dtype)
    leave_to_pytorch(already | {verdict.operator for verdict in verdicts if verdict.problem})
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for line in report_lines(verdicts):
            print(line, flush=True)
    return tuple(verdicts)


def report_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a line for each operator that is left to PyTorch, with its error and times."""
    return [f"WARNING: kernels of {verdict.line()}" for verdict in verdicts if verdict.problem]


def _read(path: Path) -> list[Verdict] | None:
    """Return the verdicts of the file; None if there is none that can be read."""
    try:
        return [Verdict(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))["verdicts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, verdicts: Sequence[Verdict]) -> None:
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(
        json.dumps({"verdicts": [dataclasses.asdict(verdict) for verdict in verdicts]}, indent=1), encoding="utf-8"
    )
    aside.rename(path)
