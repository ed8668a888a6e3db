"""Nodes that are hosts of their own: what is seen when one of them is cut off, turned off or slow."""

import time
from pathlib import Path

import pytest

import jobs
from jobs.submission import Submission
from tests.jobs.support import REPOSITORY, wait_until
from tests.slurm.cluster import Cluster
from tests.slurm.gloo_task import SAVE_EVERY, STEPS, GlooTraining, trained_alone

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def submit(folder: Path, **changes) -> Submission:
    """Submit the small training to two hosts, with one rank each."""
    resources = jobs.Resources(nodes=2, timeout_min=60, partition="low", cpus_per_task=1)
    task = GlooTraining(folder=folder, **changes)
    code = jobs.Code(root=REPOSITORY)
    return jobs.submit(task, cluster="slurm", folder=folder / "jobs", resources=resources, name="gloo", code=code)


def starts(folder: Path, rank: int) -> list[list[str]]:
    """The starts of a rank: first step, host name, interface of gloo, address of rank 0."""
    path = folder / f"starts{rank}"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def take_away(cluster: Cluster, event: str, node: str) -> None:
    """Let something happen to a host."""
    if event == "cut off":
        cluster.hosts.cut_off(node)
    else:
        cluster.kill_node(node)


@pytest.mark.parametrize(
    ("event", "node"),
    [
        ("cut off", "n2"),
        pytest.param("cut off", "n1", marks=pytest.mark.slow),
        pytest.param("turned off", "n2", marks=pytest.mark.slow),
        pytest.param("turned off", "n1", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_elsewhere_when_a_host_is_lost(hosts, tmp_path, event, node):
    submission = submit(tmp_path)
    wait_until(lambda: (tmp_path / "saved").exists())
    take_away(hosts, event, node)
    lost = time.monotonic()
    assert submission.wait(0.2) is jobs.Outcome.FINISHED, submission.failure()
    print(f"{event} {node}: ended {time.monotonic() - lost:.0f} s later")
    assert GlooTraining(folder=tmp_path).saved() == (STEPS, trained_alone(2))
    before, after = starts(tmp_path, 0), starts(tmp_path, 1)
    assert [row[1:] for row in (before[0], after[0])] == [["n1", "eth0", "n1"], ["n2", "eth0", "n1"]]
    assert int(before[1][0]) >= SAVE_EVERY
    assert node not in (before[1][1], after[1][1])
