"""The checks of what surrounds a launch: MLflow's addresses in the environment, and the GPUs of the cluster."""

import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from jobs import Resources
from pipeline.config.schema import TrainConfig
from pipeline.launch.options import LaunchError
from pipeline.run.system import query_gpus

CPUS = Path("/proc/cpuinfo")
"""What the kernel says of this machine's CPUs."""


def check_tracking(cluster: str) -> None:
    """Refuse addresses in the environment that MLflow cannot open, and make the paths in them absolute.

    Under Slurm, a server whose address leads each node to itself is warned of.

    Args:
        cluster: where the processes run.

    Raises:
        InputError: the message shows the forms of an address.
    """
    from pipeline.tracking.address import VARIABLES, check_address, check_interpreter, use_absolute_addresses

    check_interpreter()
    for variable in VARIABLES:
        address = os.environ.get(variable)
        if address:
            check_address(address, variable)
            host = urlsplit(address).hostname or ""
            if cluster == "slurm" and (host in ("localhost", "::1") or host.startswith("127.")):
                print(
                    f"warning: {variable} names {host}, which leads each node to itself: name this machine "
                    f"({socket.gethostname()}), or the nodes will not reach the server",
                    file=sys.stderr,
                )
    use_absolute_addresses()


def check_gpus(config: TrainConfig, resources: Resources, cluster: str) -> None:
    """Refuse CUDA graphs, the kernels and snapshots of GPU memory where the processes will have no GPUs.

    Args:
        config: the training.
        resources: with the GPUs that the cluster has.
        cluster: where the processes run.

    Raises:
        LaunchError: such a flag is given without GPUs.
    """
    has_gpus = _has_gpus(resources, cluster)
    interprets = os.environ.get("TRITON_INTERPRET") == "1"
    asked = {
        "--train.cuda-graphs": config.cuda_graphs,
        "--train.memory-snapshot": config.memory_snapshot,
        "--train.model.backend triton": config.model.backend == "triton" and not interprets,
    }
    for flag, is_given in asked.items():
        if is_given and not has_gpus:
            needed = "ask for them by --gpus-per-node" if cluster == "slurm" else "this machine has none"
            raise LaunchError(f"{flag} needs GPUs: {needed}, or leave it out")


def describe_slow_precision(config: TrainConfig, resources: Resources, cluster: str) -> list[str]:
    """Return a sentence if the processes will compute in 16 bits on CPUs of this machine that have no such operations.

    Of CPUs in a cluster nothing is known here.
    """
    if config.precision == "fp32" or cluster == "slurm" or _has_gpus(resources, cluster) or _cpu_has_bf16():
        return []
    return [
        f"this machine's CPUs have no {config.precision} operations: --train.precision fp32 is several times as fast"
    ]


def _has_gpus(resources: Resources, cluster: str) -> bool:
    """Return whether the processes will have GPUs; a node with more processes than GPUs computes on its CPUs."""
    if resources.gpus_per_node is None and cluster != "slurm":
        return len(query_gpus("name")) >= max(1, resources.processes_per_node)
    return bool(resources.gpus_per_node)


def _cpu_has_bf16() -> bool:
    """Return whether the CPUs multiply in bf16 (`avx512_bf16`, `amx_bf16`; `bf16` on Arm); True where nobody says."""
    try:
        words = CPUS.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return True
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
