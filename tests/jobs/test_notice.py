"""Which notices a job gets before its end."""

import jobs
from jobs.notice import find_notices


def test_notices_come_from_the_time_limit_and_from_partitions_that_can_be_preempted(fake_command):
    lines = [
        "PartitionName=low Default=YES GraceTime=15 PreemptMode=REQUEUE PriorityTier=1",
        "PartitionName=top Default=NO GraceTime=0 PreemptMode=REQUEUE PriorityTier=10",
        "PartitionName=own Default=NO GraceTime=0 PreemptMode=OFF PriorityTier=1",
    ]
    fake_command("scontrol", "\n".join(lines))
    limit = jobs.Notice(seconds=120)
    assert find_notices("slurm", jobs.Resources()) == [limit, jobs.Notice(seconds=15, partition="low")]
    assert find_notices("slurm", jobs.Resources(partition="top")) == [limit]
    assert find_notices("slurm", jobs.Resources(partition="own", signal_delay_s=7)) == [jobs.Notice(seconds=7)]
    assert find_notices("local", jobs.Resources()) == []
    fake_command("scontrol", error="down", status=1)
    assert find_notices("slurm", jobs.Resources()) == [limit]
