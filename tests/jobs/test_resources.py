"""Which resources are refused without asking a cluster, and which only Slurm understands."""

import pytest

import jobs


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": 0}, "--nodes 0 must be at least 1"),
        ({"gpus_per_node": 2, "tasks_per_node": 4}, "--tasks-per-node 4 is more than --gpus-per-node 2"),
        ({"timeout_min": 2, "signal_delay_s": 120}, "--signal-delay-s 120 leaves nothing of --timeout-min 2"),
        ({"mem_gb": -1}, "--mem-gb -1 must be positive"),
        ({"container_mounts": "/a:/a"}, "--container-mounts is for a container"),
        ({"slurm": ("nodes=3",)}, "--slurm nodes=…: use --nodes instead"),
        ({"slurm": ("exclusive",)}, "--slurm exclusive: write it as KEY=VALUE"),
        ({"slurm": ("output=x",)}, "is set by the launcher"),
        ({"slurm": ("no-requeue=",)}, "--slurm no-requeue=: use --chain N"),
        ({"slurm": ("requeue=expedite",), "chain": 3}, "the jobs of a --chain are not requeued"),
        ({"chain": 0}, "--chain 0 must be at least 1"),
    ],
)
def test_error_for_a_wrong_value_names_the_flag(wrong, message):
    with pytest.raises(jobs.JobError) as error:
        jobs.Resources(**wrong).check()
    assert message in str(error.value)


def test_flags_that_only_slurm_understands_are_listed_when_set():
    assert list(jobs.Resources(nodes=2, timeout_min=5, setup=("true",)).slurm_only()) == []
    resources = jobs.Resources(
        partition="low", account="a", qos="q", constraint="c", container_image="i", slurm=("exclusive=",), chain=2
    )
    flags = ["--partition", "--account", "--qos", "--constraint", "--container-image", "--slurm", "--chain"]
    assert list(resources.slurm_only()) == flags
