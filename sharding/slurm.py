"""Which share of the work this process has, from SLURM's variables: under `srun` or in a job array."""

from __future__ import annotations

from collections.abc import Mapping

from sharding.errors import ShardingError


def slurm_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """Find the index of this SLURM task and the number of tasks; (0, 1) outside SLURM.

    In a job array every element is a task; under `srun` every process is; under both, every process of every element.
    The process of a batch script, which `srun` did not start, counts as one task.

    Raises:
        ShardingError: the array has gaps or its variables are incomplete, so the share of this task is unknown.
    """
    array_index, array_count = _array_task(environment)
    # Batch scripts have SLURM_NTASKS too, although only one process runs there; only srun sets a step id.
    in_step = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    processes = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1) if in_step else 1
    process = int(environment["SLURM_PROCID"]) if in_step else 0
    return array_index * processes + process, array_count * processes


def _array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """Find the index of this element of the job array and the number of elements; (0, 1) outside an array."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    try:
        element, first, last, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
        )
    except KeyError as error:
        raise ShardingError(
            f"SLURM_ARRAY_TASK_ID is set and {error} is not, so this task's share of the array is unknown: "
            "give --task-index and --task-count"
        ) from error
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    if first + step * (count - 1) != last:
        raise ShardingError(
            f"the job array of {count} elements from {first} to {last} has gaps: use --array 0-{count - 1}, "
            "or give --task-index and --task-count"
        )
    return (element - first) // step, count
