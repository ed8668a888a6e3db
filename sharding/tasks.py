"""Which share of the work this process has: from SLURM's variables, under `srun` or in a job array."""

from __future__ import annotations

from collections.abc import Mapping

from sharding.errors import ShardingError


def slurm_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """The index of this task and how many there are: (0, 1) outside of SLURM.

    In an array every element is a task, and under `srun` every process is; under both, every process of every element.
    A batch script's own process, which `srun` did not start, counts as one.

    Raises:
        ShardingError: the array has gaps or is not described, so that a share cannot be told from a variable.
    """
    array_index, array_count = _array_task(environment)
    # SLURM_NTASKS is set in batch scripts too, where only one process runs; a step id is set by srun alone.
    in_step = "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment
    processes = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or 1) if in_step else 1
    process = int(environment["SLURM_PROCID"]) if in_step else 0
    return array_index * processes + process, array_count * processes


def _array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    try:
        element, first, last, count = (
            int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "COUNT")
        )
    except KeyError as error:
        raise ShardingError(
            f"SLURM_ARRAY_TASK_ID is set and {error} is not, so this task's share of the array cannot be told: "
            "give --task-index and --task-count"
        ) from error
    step = int(environment.get("SLURM_ARRAY_TASK_STEP", "1"))
    if first + step * (count - 1) != last:
        raise ShardingError(
            f"the job array of {count} elements from {first} to {last} has gaps: use --array 0-{count - 1}, "
            "or give --task-index and --task-count"
        )
    return (element - first) // step, count
