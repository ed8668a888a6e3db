"""The share of a task follows from SLURM's variables."""

import pytest

from sharding import ShardingError
from sharding.slurm import slurm_task


@pytest.mark.parametrize(
    ("variables", "task"),
    [
        ({}, (0, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (0, 1)),  # the process of a batch script
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_STEP_ID": "0"}, (5, 8)),
        ({"ID": "7", "MIN": "3", "MAX": "9", "COUNT": "4", "STEP": "2"}, (2, 4)),
        ({"ID": "1", "MIN": "0", "MAX": "1", "COUNT": "2"} | {"NTASKS": "4", "PROCID": "3", "STEP_ID": "1"}, (7, 8)),
    ],
)
def test_task_index_and_count_follow_from_slurm_variables(variables: dict[str, str], task: tuple[int, int]):
    array = {"ID", "MIN", "MAX", "COUNT", "STEP"}
    names = {
        key if key.startswith("SLURM") else f"SLURM_ARRAY_TASK_{key}" if key in array else f"SLURM_{key}": value
        for key, value in variables.items()
    }
    assert slurm_task(names) == task


def test_an_array_with_gaps_or_without_its_bounds_is_refused():
    array = {"ID": "7", "MIN": "1", "MAX": "7", "COUNT": "3"}
    with pytest.raises(ShardingError, match="gaps"):
        slurm_task({f"SLURM_ARRAY_TASK_{key}": value for key, value in array.items()})
    with pytest.raises(ShardingError, match="SLURM_ARRAY_TASK_MIN"):
        slurm_task({"SLURM_ARRAY_TASK_ID": "7"})
