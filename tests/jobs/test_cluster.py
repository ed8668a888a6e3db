"""What is decided from Slurm's answers, with Slurm's commands faked on the PATH."""

import os
import pickle
import signal
import stat
from pathlib import Path

import pytest

import jobs
from jobs import attempts
from jobs.aftermath import lost_ranks
from jobs.cluster import slurm_job
from jobs.environment import Place, free_port, master_address, master_port
from jobs.failure import failure, is_consequence, last_error
from jobs.preemption import StopFlag
from jobs.requeue import Fate, fate


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Write a Slurm command that answers as told; no other Slurm command is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin/nowhere")

    def write(name: str, output: str = "", error: str = "", status: int = 0, sleep_s: int = 0) -> None:
        program = folder / name
        program.write_text(
            f"#!/bin/sh\n[ {sleep_s} = 0 ] || /bin/sleep {sleep_s}\n"
            f"/bin/cat <<'END'\n{output}\nEND\necho '{error}' >&2\nexit {status}\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return write


def test_auto_is_slurm_where_sinfo_answers(fake):
    fake("sinfo", "low\nhigh")
    cluster, reason = jobs.choose_cluster("auto")
    assert cluster == "slurm"
    assert "high, low" in reason


def test_auto_is_local_without_slurm_and_says_why(fake):
    assert jobs.choose_cluster("auto") == (
        "local",
        "processes on this machine, because sinfo is not installed on this machine",
    )


def test_slurm_that_does_not_answer_does_not_hold_the_launcher(fake, monkeypatch):
    monkeypatch.setattr("jobs.cluster.ANSWER_S", 0.3)
    fake("sinfo", "low", sleep_s=20)
    cluster, reason = jobs.choose_cluster("auto")
    assert cluster == "local"
    assert "did not answer" in reason
    with pytest.raises(jobs.JobError, match="use --cluster local"):
        jobs.choose_cluster("slurm")


def test_unknown_cluster_names_the_right_ones(fake):
    with pytest.raises(jobs.JobError, match="there are: auto, slurm, local, debug"):
        jobs.choose_cluster("slrum")


PLACE = Place(
    rank=0,
    world_size=2,
    local_rank=0,
    local_world_size=1,
    node=0,
    master_addr="n1",
    master_port=20000,
    job_id="7",
    restarts=1,
)


def flag(*signals: signal.Signals) -> StopFlag:
    made = StopFlag()
    made.received.extend(signals)
    return made


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("JobState=RUNNING Reason=None Restarts=1", Fate.REQUEUE),
        ("JobState=COMPLETING Reason=None Restarts=1", Fate.CANCELLED),
        ("JobState=CANCELLED Reason=None Restarts=1", Fate.CANCELLED),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=1", Fate.REQUEUE),
        ("JobState=COMPLETING Reason=None Restarts=2", Fate.REQUEUED),
        ("JobState=PENDING Reason=BeginTime Restarts=2", Fate.REQUEUED),
    ],
)
def test_interrupted_job_comes_back_unless_somebody_cancelled_it(fake, tmp_path, answer, expected):
    fake("scontrol", f"JobId=7 JobName=x JobState={answer.partition('=')[2]}")
    assert fate("slurm", tmp_path, PLACE, flag(signal.SIGTERM)) is expected


def test_controller_that_is_down_is_no_reason_to_give_up(fake, tmp_path):
    fake("scontrol", error="Unable to contact slurm controller (connect failure)", status=1)
    assert fate("slurm", tmp_path, PLACE, flag(signal.SIGTERM)) is Fate.REQUEUE


def test_job_whose_rank_failed_does_not_come_back(fake, tmp_path):
    fake("scontrol", "JobState=RUNNING Restarts=1")
    leave(tmp_path, 1, "Traceback (most recent call last):\n  File\nValueError: wrong")
    assert fate("slurm", tmp_path, PLACE, flag(signal.SIGTERM)) is Fate.FAILED


def test_local_job_comes_back_only_when_no_person_stopped_it(tmp_path):
    assert fate("local", tmp_path, PLACE, flag(signal.SIGUSR2)) is Fate.REQUEUE
    assert fate("local", tmp_path, PLACE, flag(signal.SIGTERM)) is Fate.STOPPED
    assert fate("debug", tmp_path, PLACE, flag(signal.SIGUSR2)) is Fate.STOPPED


def leave(folder: Path, rank: int, traceback: str) -> None:
    """What Submitit writes for a rank that failed."""
    (folder / f"7_{rank}_result.pkl").write_bytes(pickle.dumps(("error", traceback)))


HEAD = "Traceback (most recent call last):\n  File\n"
GLOO = HEAD + "RuntimeError: [gloo/pair.cc:553] Connection closed by peer [10.0.0.2]:5"
NCCL = HEAD + "torch.distributed.DistBackendError: NCCL error in: x.cpp:1\nremote process exited"
STORE = HEAD + "torch.distributed.DistStoreError: Timed out waiting for clients. 1/2"


@pytest.mark.parametrize("traceback", [GLOO, NCCL, STORE])
def test_error_of_a_lost_peer_is_told_from_an_own_one(tmp_path, traceback):
    assert is_consequence(last_error(traceback))
    leave(tmp_path, 0, traceback)
    leave(tmp_path, 1, "Traceback (most recent call last):\n  File\nKeyError: 'label'")
    assert failure(tmp_path, "7", 2).startswith("rank 1 failed: KeyError: 'label'\n")
    assert last_error("pipeline.data.reader.DamagedSampleError: sample 7") == "DamagedSampleError: sample 7"


ENVIRONMENT = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("events", "traceback", "lost"),
    [
        ([], "", False),
        ([("start", "")], "", True),
        ([("start", "")], GLOO, True),
        ([("start", ""), ("end", "peer lost")], GLOO, True),
        ([("start", "")], "Traceback\n  File\nKeyError: 1", False),
        ([("start", ""), ("end", "failed")], "", False),
        ([("start", ""), ("end", "cancelled")], "", False),
        ([("start", ""), ("end", "requeued")], "", False),
        ([("end", "given up")], "", False),
    ],
)
def test_only_an_attempt_that_started_and_lost_ranks_comes_back(tmp_path, events, traceback, lost):
    attempts.record(tmp_path, "start", job_id="7", restarts=0)
    for event, outcome in events:
        attempts.record(tmp_path, event, job_id="7", restarts=1, outcome=outcome)
    if traceback:
        leave(tmp_path, 0, traceback)
    assert lost_ranks(tmp_path, ENVIRONMENT) is lost


def test_slurm_job_reads_the_controller_then_the_accounting(fake):
    fake("scontrol", "JobId=7 JobState=PENDING Reason=Priority Restarts=3 NodeList=(null) Comment=JobState=X")
    job = slurm_job("7")
    assert job is not None
    assert (job.state, job.reason, job.restarts, job.nodes) == ("PENDING", "Priority", 3, "")
    fake("scontrol", error="slurm_load_jobs error: Invalid job id specified", status=1)
    assert slurm_job("7") is None
    fake("sacct", "CANCELLED by 1000|0:0|n[1-2]")
    job = slurm_job("7")
    assert job is not None
    assert (job.state, job.nodes) == ("CANCELLED", "n[1-2]")


def test_notices_are_those_of_the_job_and_of_partitions_that_others_preempt(fake):
    lines = [
        "PartitionName=low Default=YES GraceTime=15 PreemptMode=REQUEUE PriorityTier=1",
        "PartitionName=top Default=NO GraceTime=0 PreemptMode=REQUEUE PriorityTier=10",
        "PartitionName=own Default=NO GraceTime=0 PreemptMode=OFF PriorityTier=1",
    ]
    fake("scontrol", "\n".join(lines))
    limit = jobs.Notice(seconds=120)
    assert jobs.notices("slurm", jobs.Resources()) == [limit, jobs.Notice(seconds=15, partition="low")]
    assert jobs.notices("slurm", jobs.Resources(partition="top")) == [limit]
    assert jobs.notices("slurm", jobs.Resources(partition="own", signal_delay_s=7)) == [jobs.Notice(seconds=7)]
    assert jobs.notices("local", jobs.Resources()) == []
    fake("scontrol", error="down", status=1)
    assert jobs.notices("slurm", jobs.Resources()) == [limit]


def test_master_address_falls_back_to_what_resolves(fake, monkeypatch):
    monkeypatch.delenv("SLURM_LAUNCH_NODE_IPADDR", raising=False)
    assert master_address(["n1", "n2"], resolves=lambda host: True) == "n1"
    fake("scontrol", "NodeName=n1 NodeAddr=10.0.0.1 NodeHostName=vm")
    assert master_address(["n1"], resolves=lambda host: host == "10.0.0.1") == "10.0.0.1"
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.9")
    assert master_address(["n1"], resolves=lambda host: False) == "10.0.0.9"
    monkeypatch.delenv("SLURM_LAUNCH_NODE_IPADDR")
    with pytest.raises(jobs.JobError, match="the first node of the job, n1"):
        master_address(["n1"], resolves=lambda host: False)


def test_ports_differ_between_attempts_and_stay_out_of_the_way():
    ports = {master_port(f"12.{restarts}") for restarts in range(20)}
    assert len(ports) == 20
    assert all(20000 <= port < 32768 for port in [*ports, free_port()])


def test_dry_run_shows_the_script_without_slurm(fake, tmp_path):
    resources = jobs.Resources(
        nodes=4,
        gpus_per_node=2,
        cpus_per_task=6,
        mem_gb=10.5,
        partition="low",
        account="lab",
        setup=("module load cuda",),
        slurm=("reservation=abc", "exclusive="),
    )
    script = jobs.dry_run(cluster="slurm", folder=tmp_path / "run", resources=resources, name="demo")
    lines = script.splitlines()
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --mem=10752M",
        "#SBATCH --partition=low",
        "#SBATCH --account=lab",
        "#SBATCH --reservation=abc",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
        "module load cuda",
    ):
        assert line in lines
    srun = next(line for line in lines if line.startswith("srun"))
    assert "--kill-on-bad-exit=1" in srun
    assert "--cpus-per-task=6" in srun
    assert not (tmp_path / "run").exists()


def test_container_sees_the_run_and_the_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resources = jobs.Resources(container_image="registry#image:1")
    code = jobs.Code(root=tmp_path / "code")
    script = jobs.dry_run(cluster="slurm", folder=tmp_path / "run/jobs", resources=resources, name="x", code=code)
    srun = next(line for line in script.splitlines() if line.startswith("srun"))
    mounts = ",".join(f"{path}:{path}" for path in (tmp_path / "run", tmp_path / "code", tmp_path))
    assert f"'--container-image=registry#image:1' --container-mounts={mounts} python3 -u -m jobs.rank" in srun


def test_dry_run_of_the_local_cluster_says_what_would_start(tmp_path):
    text = jobs.dry_run(cluster="local", folder=tmp_path / "run", resources=jobs.Resources(nodes=4), name="demo")
    assert text.startswith("4 processes on this machine stand for 4 nodes of 1")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"nodes": 0}, "--nodes 0 must be at least 1"),
        ({"gpus_per_node": 2, "tasks_per_node": 4}, "--tasks-per-node 4 is more than --gpus-per-node 2"),
        ({"timeout_min": 2, "signal_delay_s": 120}, "--signal-delay-s 120 leaves nothing of --timeout-min 2"),
        ({"mem_gb": -1}, "--mem-gb -1 must be positive"),
        ({"container_mounts": "/a:/a"}, "--container-mounts is for a container"),
        ({"slurm": ("nodes=3",)}, "--slurm nodes=…: use --nodes for it"),
        ({"slurm": ("exclusive",)}, "--slurm exclusive: write it as KEY=VALUE"),
        ({"slurm": ("output=x",)}, "is set by the launcher"),
    ],
)
def test_wrong_resources_name_the_flag(wrong, words):
    with pytest.raises(jobs.JobError) as error:
        jobs.Resources(**wrong).check()
    assert words in str(error.value)


def test_environment_says_nothing_of_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("JOB_ID", "")
    monkeypatch.setenv("JOB_RESTARTS", "")
    PLACE.export()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert (os.environ["RANK"], os.environ["MASTER_ADDR"], os.environ["JOB_RESTARTS"]) == ("0", "n1", "1")
