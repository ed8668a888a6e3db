"""The report at the start of each attempt: versions, GPUs, hosts, file systems and code, to diagnose a job with."""

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
from jobs.rendezvous import Location

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
"""Prefixes of variables that change how a job runs. Other variables may hold secrets and are left out."""


def collect_report(
    place: Place, locations: Sequence[Location], notices: Sequence[Notice], folders: Sequence[Path], code: str
) -> dict[str, object]:
    """Collect the report on this node, without a heavy import.

    Args:
        place: place of this process in the job.
        locations: host and GPU of each rank.
        notices: how long before its end the job is notified.
        folders: folders whose file systems are reported.
        code: human-readable description of the code that the job runs.
    """
    return {
        "job": {"id": place.job_id, "restarts": place.restarts, "world_size": place.world_size},
        "master": f"{place.master_addr}:{place.master_port}",
        "hosts": _by_host(locations),
        "notices": [vars(notice) for notice in notices],
        "code": code,
        **describe_machine(folders),
    }


def describe_machine(folders: Sequence[Path]) -> dict[str, object]:
    """Describe this machine without a heavy import: versions, cores, memory, GPUs, and the folders' file systems."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": _memory_gb(),
        "packages": _versions(),
        "gpus": _gpus(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SHOWN)},
        "file_systems": {str(folder): _file_system(folder) for folder in folders},
    }


def write_report(path: Path, report: dict[str, object]) -> str:
    """Write the report as JSON, and return the same text for the log."""
    text = json.dumps(report, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    return text


def _by_host(locations: Sequence[Location]) -> dict[str, str]:
    """For each host, in order of its first rank: its ranks and the GPU of each of them."""
    hosts = {}
    for host in dict.fromkeys(host for host, _ in locations):
        here = [(str(rank), gpu) for rank, (name, gpu) in enumerate(locations) if name == host]
        gpus = [gpu or "none" for _, gpu in here]
        hosts[host] = f"ranks {', '.join(rank for rank, _ in here)}" + (
            f" on GPUs {', '.join(gpus)}" if any(gpu for _, gpu in here) else ""
        )
    return hosts


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpus() -> list[str]:
    """Index, name, memory and driver of each GPU of this node, from nvidia-smi; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def _memory_gb() -> float | None:
    try:
        words = Path("/proc/meminfo").read_text(encoding="utf-8").split()
        return round(int(words[words.index("MemTotal:") + 1]) / 2**20, 1)
    except (OSError, ValueError, IndexError):
        return None


def _file_system(folder: Path) -> dict[str, object]:
    """Kind, mount point, free space and size of the file system of a folder."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return {"error": str(error.strerror)}
    kind, best = "unknown", ""
    try:
        mounts = [
            line.split()[1:3]
            for line in Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        ]
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
