"""Requested resources are checked against the output of sinfo."""

import pytest

import jobs
from jobs.partitions import _parse_group, fit_resources, with_cores

LINES = [
    "low|up|4|16|64000|gpu:a100:4(S:0-1)|2:00:00|a100,fast|low*",
    "low|up|2|32|128000|(null)|2:00:00|(null)|low*",
    "high|up|4|16|64000|gpu:a100:4(S:0-1)|infinite|a100|high",
    "old|down|8|8|16000|(null)|1-12:00:00|(null)|old",
]
GROUPS = [_parse_group(line) for line in LINES]


def test_groups_of_nodes_are_parsed_from_sinfo():
    first, second, third, last = GROUPS
    assert (first.partition, first.nodes, first.cpus, first.gpus, first.limit_min) == ("low", 4, 16, 4, 120)
    assert first.is_default
    assert first.features == {"a100", "fast"}
    assert (second.gpus, second.features) == (0, frozenset())
    assert third.limit_min is None
    assert (last.limit_min, last.is_up, last.is_default) == (2160, False, False)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"partition": "gpu"}, "--partition gpu does not exist; there are: high, low, old"),
        ({"partition": "old"}, "partition old is down"),
        ({"nodes": 5, "gpus_per_node": 4}, "--nodes 5 is more than the 4 nodes of low that have these resources"),
        ({"gpus_per_node": 8}, "--gpus-per-node asks for 8 GPUs of a node; the largest of low has 4"),
        ({"tasks_per_node": 8, "cpus_per_task": 5}, "asks for 40 cores of a node; the largest of low has 32"),
        ({"mem_gb": 200}, "--mem-gb asks for 200 GB of a node; the largest of low has 125"),
        ({"timeout_min": 121}, "--timeout-min 121 is over the limit of low: 120"),
        ({"constraint": "h100"}, "--constraint h100: no node of low has it; there are: a100, fast"),
    ],
)
def test_error_names_the_resource_that_the_partition_lacks(wanted, message):
    with pytest.raises(jobs.JobError) as error:
        fit_resources(jobs.Resources(**wanted), GROUPS)
    assert message in str(error.value)


def test_time_limit_defaults_to_that_of_the_partition():
    assert fit_resources(jobs.Resources(nodes=6), GROUPS).timeout_min == 120
    assert fit_resources(jobs.Resources(partition="high"), GROUPS).timeout_min == 1440
    assert fit_resources(jobs.Resources(timeout_min=30, constraint="fast&a100"), GROUPS).timeout_min == 30


def test_resources_are_not_checked_without_a_default_partition():
    resources = jobs.Resources()
    assert fit_resources(resources, GROUPS[2:]) == resources


@pytest.mark.parametrize(
    ("wanted", "processes", "cores"),
    [
        ({}, 5, 5),
        ({"gpus_per_node": 4}, 5, 4),
        ({"gpus_per_node": 1}, 5, 4),
        ({"gpus_per_node": 4, "tasks_per_node": 1}, 5, 5),
        ({"tasks_per_node": 8}, 5, 2),
        ({"cpus_per_task": 3}, 5, 3),
        ({"tasks_per_node": 20}, 5, 1),
        ({"partition": "high", "gpus_per_node": 2}, 1, 1),
    ],
)
def test_each_process_gets_cores_for_its_workers_and_no_more_than_its_share(wanted, processes, cores):
    assert with_cores(jobs.Resources(**wanted), GROUPS, processes).cpus_per_task == cores
