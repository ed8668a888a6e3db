"""What a person asks for first when a job misbehaves: versions, devices, hosts, file systems, the code."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from jobs.environment import Place
from jobs.notice import Notice
from jobs.rendezvous import Seat

PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "deepspeed",
    "timm",
    "mlflow",
    "numpy",
    "pyarrow",
    "webdataset",
    "submitit",
    "nvidia-nccl-cu12",
    "nvidia-nccl-cu13",
)
_SHOWN = ("NCCL_", "GLOO_", "OMP_", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST", "SLURM_NTASKS")
"""Variables that change how a job runs. The rest of the environment may hold secrets and is not shown."""


def report(
    place: Place, seats: Sequence[Seat], known: Sequence[Notice], folders: Sequence[Path], code: str
) -> dict[str, object]:
    """Collect what can be learnt on this node without importing anything heavy.

    Args:
        place: of this process.
        seats: of all ranks.
        known: how long before its end the job is told.
        folders: whose file systems matter.
        code: what the job runs, in words.
    """
    return {
        "job": {"id": place.job_id, "restarts": place.restarts, "world_size": place.world_size},
        "master": f"{place.master_addr}:{place.master_port}",
        "hosts": _by_host(seats),
        "notices": [vars(notice) for notice in known],
        "code": code,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "packages": _versions(),
        "gpus": _gpus(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SHOWN)},
        "file_systems": {str(folder): _file_system(folder) for folder in folders},
    }


def write(path: Path, words: dict[str, object]) -> str:
    """Write the report as JSON, and return it as text for the log."""
    text = json.dumps(words, indent=2)
    path.write_text(text + "\n")
    return text


def _by_host(seats: Sequence[Seat]) -> dict[str, str]:
    """The ranks on each host, in order of their first, and the GPU that each of them drives."""
    words = {}
    for host in dict.fromkeys(host for host, _ in seats):
        here = [(str(rank), gpu) for rank, (name, gpu) in enumerate(seats) if name == host]
        gpus = [gpu or "none" for _, gpu in here]
        words[host] = f"ranks {', '.join(rank for rank, _ in here)}" + (
            f" on GPUs {', '.join(gpus)}" if any(gpu for _, gpu in here) else ""
        )
    return words


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU of this node, as nvidia-smi tells; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _memory_gb() -> float | None:
    try:
        words = Path("/proc/meminfo").read_text().split()
        return round(int(words[words.index("MemTotal:") + 1]) / 2**20, 1)
    except (OSError, ValueError, IndexError):
        return None


def _file_system(folder: Path) -> dict[str, object]:
    """Kind and room of the file system that holds a folder."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return {"error": str(error.strerror)}
    kind, best = "unknown", ""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        mounts = []
    for point, name in mounts:
        if len(point) > len(best) and (folder.resolve() / "x").is_relative_to(point):
            kind, best = name, point
    return {
        "kind": kind,
        "mounted_at": best,
        "free_gb": round(usage.free / 1e9, 1),
        "size_gb": round(usage.total / 1e9, 1),
    }
