"""What the tests of small tasks on a rehearsal cluster share."""

from jobs.submission import Submission
from tests.jobs.support import wait_until
from tests.slurm.cluster import Cluster


def preempt(cluster: Cluster, nodes: int = 4) -> None:
    """Submit a job to the high partition that takes all cores for a second."""
    cluster.run("sbatch", "-p", "high", "--exclusive", f"-N{nodes}", "-o", "/dev/null", "--wrap", "sleep 1")


def assert_over(cluster: Cluster, submission: Submission, state: str) -> None:
    """Assert that the job has ended as that: Slurm says so, and no process is left that could requeue it."""
    wait_until(lambda: not list(cluster.job_processes()))
    assert submission.update().state == state
