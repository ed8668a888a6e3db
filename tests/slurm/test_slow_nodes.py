"""Nodes that are slow, hang, or see something else than the others, each a host of its own: what is said, and done."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.preflight import read_table
from tests.slurm.cluster import Cluster
from tests.slurm.processes import environment_of
from tests.slurm.ranks import slowed
from tests.slurm.runs import Run, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


def launch(folder: Path, *flags: str) -> Run:
    """A training on two hosts, small enough for many steps."""
    small = ("--train.global-batch-size", "16", "--train.data.workers", "0", "--train.eval-every-steps", "100000")
    return Run(folder, "run").launch(*small, *flags)


def wait_for(run: Run, condition: Callable[[], object]) -> None:
    """Wait until something is true of a run; not when its launcher has ended."""
    wait_until(lambda: condition() or not run.is_running(), 400)
    assert condition(), run.finish()


def rank_log(run: Run, rank: int) -> str:
    return (run.path / "submitit" / f"{run.job_id}_{rank}_log.out").read_text()


def bind(cluster: Cluster, node: str, other: Path, path: Path) -> None:
    """Let a host see another file under a path."""
    subprocess.run([*cluster.hosts.enter(node), "mount", "--bind", str(other), str(path)], check=True)


def test_a_node_that_becomes_slow_is_named_with_the_slow_part(hosts: Cluster, tmp_path: Path):
    run = launch(tmp_path, "--train.steps", "100000", "--train.save-every-steps", "100000")
    wait_for(run, lambda: len(run.records()) > 20)
    with slowed(hosts, "n2", 3):
        wait_for(run, lambda: run.events("slow_rank"))
    [event] = run.events("slow_rank")
    assert (event["rank"], event["host"], event["part"]) == (1, "n2", "computing")
    assert "rank 1 on n2 slow, as in most of the last 10 comparisons" in rank_log(run, 0)
    wait_for(run, lambda: run.events("well_rank"))
    hosts.run("scancel", run.job_id)
    run.finish()


def test_a_node_that_is_slow_at_the_start_is_left_out_of_the_next_one(hosts: Cluster, tmp_path: Path):
    """The brake is so hard that the node stays the slower one, whatever else the machine does."""
    run = launch(tmp_path, "--train.preflight-slow", "restart")
    # Rank 0 takes the lock before the preflight, when the imports of both ranks are over.
    wait_for(run, (run.path / ".lock").exists)
    with slowed(hosts, "n2", 20):
        wait_for(run, lambda: run.events("preflight"))
    [first] = run.events("preflight")
    assert "rank 1 on n2: " in " ".join(first["findings"])
    assert "slow" in "\n".join(read_table(run.path, 1))
    wait_for(run, lambda: len(run.events("preflight")) == 2)
    assert_went_on_without(run, "n2")


def assert_went_on_without(run: Run, node: str) -> None:
    """Assert that the first attempt trained nothing, and the second one everything on other nodes."""
    output = run.finish()
    assert run.status == 0, output
    assert node in json.loads((run.path / "submitit" / "excluded_nodes.json").read_text())["nodes"]
    assert [event["outcome"] for event in run.events("end")] == ["interrupted", "finished"]
    assert f" {node} " not in "\n".join(read_table(run.path, 2))
    assert {row["attempt"] for row in run.records()} == {2}
    run.assert_registered()


@pytest.mark.parametrize("what", ["shards", "disk"])
def test_a_node_that_fails_is_left_out_and_the_run_goes_on_elsewhere(hosts: Cluster, tmp_path: Path, what: str):
    """A node on which the file system of the shards is missing, or whose disk is full."""
    first, second = block(hosts, "n1,n2", "n3,n4")
    run = launch(tmp_path)
    wait_for(run, lambda: (run.path / "submitit" / "submission.json").exists())
    enter = hosts.hosts.enter("n2")
    if what == "shards":
        path = Path(json.loads((run.path / "config.json").read_text())["train"]["data"]["shards"])
        subprocess.run([*enter, "mount", "-t", "tmpfs", "tmpfs", str(path)], check=True)
    else:
        path = run.path / ".preflight-1"
        path.touch()
        # Each write to it fails as one to a full disk does.
        bind(hosts, "n2", Path("/dev/full"), path)
    hosts.run("scancel", first)
    wait_for(run, lambda: run.events("preflight"))
    hosts.run("scancel", second)
    found = " ".join(run.events("preflight")[0]["findings"])
    full = "writing to the run directory failed: [Errno 28] No space left on device"
    why = "it does not see the training shards" if what == "shards" else full
    assert f"rank 1 on n2: {why}" in found
    assert_went_on_without(run, "n2")
    # The rank of the second attempt has removed its file, and with it this mount.
    subprocess.run([*enter, "umount", str(path)], check=what == "shards")


def block(cluster: Cluster, *pairs: str) -> list[str]:
    """Take pairs of nodes, so that the jobs that are submitted wait for them; return the job that takes each pair."""
    command = ("sbatch", "--parsable", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap", "sleep 600")
    jobs = [cluster.run(*command, "-w", pair).strip() for pair in pairs]
    wait_until(lambda: {*cluster.run("squeue", "-h", "-t", "R", "-o", "%i").split()} == {*jobs})
    return jobs


@pytest.mark.parametrize("what", ["code", "run"])
def test_a_node_that_sees_other_code_or_another_run_stops_the_attempt(hosts: Cluster, tmp_path: Path, what: str):
    blocker, _ = block(hosts, "n1,n2", "n3,n4")
    run = launch(tmp_path)
    wait_for(run, lambda: (run.path / "submitit" / "submission.json").exists())
    if what == "code":
        [path] = (run.path / "code").glob("*/pipeline/order/draws.py")
    else:
        path = run.path / "config.json"
    other = tmp_path / "other"
    text = path.read_text()
    other.write_text(text + "\n" if what == "code" else text.replace('"log_every_steps": ', '"log_every_steps": 1'))
    bind(hosts, "n2", other, path)
    hosts.run("scancel", blocker)
    output = run.finish()
    assert run.status != 0
    assert "preflight: rank 1 on n2: it " in output, output[-3000:]
    assert ("it has other code than most ranks" in output) == (what == "code")
    assert not run.records()
    subprocess.run([*hosts.hosts.enter("n2"), "umount", str(path)], check=True)


def test_a_rank_that_hangs_is_named_before_the_time_out(hosts: Cluster, tmp_path: Path):
    run = launch(tmp_path, "--train.steps", "100000", "--train.collective-timeout-s", "40")
    wait_for(run, lambda: len(run.records()) > 5)
    for pid in hosts.job_processes():
        if environment_of(pid).get("SLURM_PROCID") == "1":
            os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for(run, lambda: run.events("hang"))
    assert time.monotonic() - stopped < 40
    [event] = run.events("hang")
    assert (event["rank"], event["host"]) == (1, "n2")
    assert "the others wait for rank 1 on n2 (does not answer)" in rank_log(run, 0)
    assert "its threads:" in rank_log(run, 0)
    hosts.run("scancel", run.job_id)
    run.finish()
