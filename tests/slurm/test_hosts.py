"""Nodes that are hosts of their own: what is seen when one of them is cut off, turned off or slow."""

import tempfile
from pathlib import Path

import pytest

import jobs
from jobs.submission import Submission
from tests.jobs.support import REPOSITORY, wait_until
from tests.slurm.cluster import Cluster
from tests.slurm.gloo_task import SAVE_EVERY, STEPS, GlooTraining, trained_alone
from tests.slurm.ranks import ranks_on_host

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def submit(folder: Path, nodes: int = 2, **changes) -> Submission:
    """Submit the small training, with one rank on each host."""
    resources = jobs.Resources(nodes=nodes, timeout_min=60, partition="low", cpus_per_task=1)
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
    ("event", "node", "is_told"),
    [
        ("cut off", "n2", True),
        pytest.param("cut off", "n1", False, marks=pytest.mark.slow),
        pytest.param("turned off", "n2", False, marks=pytest.mark.slow),
        pytest.param("turned off", "n1", False, marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_elsewhere_when_a_host_is_lost(hosts, tmp_path, event, node, is_told):
    submission = submit(tmp_path)
    wait_until(lambda: (tmp_path / "saved").exists())
    take_away(hosts, event, node)
    if is_told:
        # Slurm itself would find that out after half a minute.
        hosts.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    assert submission.wait(0.2) is jobs.Outcome.FINISHED, submission.failure()
    assert GlooTraining(folder=tmp_path).saved() == (STEPS, trained_alone(2))
    zero, one = starts(tmp_path, 0), starts(tmp_path, 1)
    assert (zero[0][1:], one[0][1:]) == (["n1", "eth0", "n1"], ["n2", "eth0", "n1"])
    assert int(zero[1][0]) >= SAVE_EVERY
    assert node not in (zero[1][1], one[1][1])
    wait_until(lambda: not ranks_on_host(hosts, node))


def test_run_directory_that_the_nodes_do_not_see_is_named(hosts):
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        submission = submit(Path(name))
        assert submission.wait(0.2) is jobs.Outcome.FAILED
        assert f"it left no log in {name}/jobs: is that folder on a disk that the nodes see?" in submission.failure()


@pytest.mark.slow
def test_job_that_goes_on_beyond_the_reach_of_slurm_ends_when_it_has_started_elsewhere(hosts, tmp_path):
    # Slow enough that it is not over before Slurm gives the host up.
    submission = submit(tmp_path, nodes=1, pause_s=1.5)
    wait_until(lambda: (tmp_path / "saved").exists())
    hosts.hosts.cut_off("n1")
    wait_until(lambda: len(starts(tmp_path, 0)) == 2)
    assert ranks_on_host(hosts, "n1"), "the host has lost Slurm, and nothing else"
    wait_until(lambda: not ranks_on_host(hosts, "n1"))
    hosts.hosts.reconnect("n1")
    assert submission.wait(0.2) is jobs.Outcome.FINISHED, submission.failure()
    assert GlooTraining(folder=tmp_path).saved() == (STEPS, trained_alone(1))
    log = (tmp_path / "jobs" / f"{submission.job_id}_0_log.out").read_text()
    assert f"attempt 1 of job {submission.job_id} goes on with the work on n2" in log
