"""Submitit's executors, set up for processes that form one distributed job."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitit.core import core
from submitit.local.debug import DebugExecutor
from submitit.local.local import LocalExecutor, LocalJob
from submitit.slurm.slurm import SlurmExecutor

from jobs.cluster import Cluster
from jobs.presence import claim
from jobs.resources import DEFAULT_TIMEOUT_MIN, Resources

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

NO_TIMEOUT_LIMIT = 1_000_000
"""Submitit counts notices as time-outs, every one of them where the limit is 10 minutes or less; we count progress."""

Executor = core.Executor


def rank_command(python: str, folder: Path) -> str:
    """The shell command that each process runs."""
    return f"{python} -u -m jobs.rank {shlex.quote(str(folder))}"


class Slurm(SlurmExecutor):
    """Submits with sbatch, and starts our entry point. Can be built without Slurm, to show the script."""

    @classmethod
    def affinity(cls) -> int:
        """Leave it to sbatch to be missing."""
        return 2

    @property
    def _submitit_command_str(self) -> str:
        return rank_command(self.python, self.folder)

    def script(self, elements: int = 1) -> str:
        """The sbatch script that `submit` would hand over, or `submit_array` for that many elements."""
        if elements > 1:
            self.parameters["map_count"] = elements
        return self._make_submission_file_text(self._submitit_command_str, "")


class Local(LocalExecutor):
    """Starts our controller, which starts the processes on this machine."""

    def __init__(self, folder: Path, resources: Resources, code: Path, *, attached: bool) -> None:
        super().__init__(folder, max_num_timeout=NO_TIMEOUT_LIMIT)
        self._resources = resources
        self._code = code
        self._attached = attached

    @property
    def _submitit_command_str(self) -> str:
        return rank_command(self.python, self.folder)

    def _submit_command(self, command: str) -> LocalJob[Any]:
        resources = self._resources
        job_id = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        environment = dict(os.environ) | {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_NTASKS": str(resources.world_size),
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * (resources.timeout_min or 0)),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(resources.notice_s),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "JOBS_LOCAL_JOB_ID": job_id,
            "JOBS_LOCAL_PARENT": str(os.getpid() if self._attached else 0),
            "PYTHONPATH": os.pathsep.join([str(self._code), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONSAFEPATH": "1",
        }
        if resources.gpus_per_node == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        controller = f"exec {self.python} -m jobs.controller {shlex.quote(str(self.folder))}"
        held = claim(self.folder)
        with (self.folder / f"{job_id}_controller.log").open("a") as log:
            process = subprocess.Popen(
                " && ".join([*resources.setup, controller]),
                shell=True,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(held,),
            )
        os.close(held)
        return LocalJob(self.folder, job_id, tasks=list(range(resources.world_size)), process=process)


class Debug(DebugExecutor):
    """Runs the job in this process, when it is waited for."""

    def _internal_process_submissions(self, delayed_submissions: "list[DelayedSubmission]") -> list[core.Job[Any]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return super()._internal_process_submissions(delayed_submissions)


def build_executor(
    cluster: Cluster, folder: Path, resources: Resources, name: str, *, code: Path, attached: bool = True
) -> Executor:
    """The executor of a cluster, with all that the job needs set.

    Args:
        cluster: where to run.
        folder: for scripts, pickles and logs; seen by all nodes.
        resources: what to ask for, already checked.
        name: of the job, in the queue.
        code: folder that holds the packages that the processes import.
        attached: on the local cluster, whether the job stops when this process ends.
    """
    folder = folder.absolute()
    if cluster == "local":
        return Local(folder, resources, code, attached=attached)
    if cluster == "debug":
        return Debug(folder)
    python = resources.python or ("python3" if resources.container_image else shlex.quote(sys.executable))
    executor = Slurm(folder, max_num_timeout=NO_TIMEOUT_LIMIT, python=python)
    aftermath = f"{python} -m jobs.aftermath {shlex.quote(str(folder))} $status"
    executor.update_parameters(
        **_slurm_parameters(resources, name, folder, code),
        # The first line of the teardown still sees srun's status.
        teardown=["status=$?", f"[ $status -eq 0 ] || {aftermath}", "exit $status"],
    )
    return executor


def _mounts(folder: Path, code: Path) -> str:
    """What a container must see at least: the run, the code, and where relative paths start."""
    return ",".join(f"{path}:{path}" for path in dict.fromkeys((folder.parent, code, Path.cwd())))


def _slurm_parameters(resources: Resources, name: str, folder: Path, code: Path) -> dict[str, Any]:
    # srun takes neither the cores (since 22.05) nor the open mode from sbatch.
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if resources.cpus_per_task is not None:
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")
    if resources.container_image:
        mounts = resources.container_mounts or _mounts(folder, code)
        srun += [f"--container-image={resources.container_image}", f"--container-mounts={mounts}"]
    parameters: dict[str, Any] = {
        "job_name": name,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.processes_per_node,
        "gpus_per_node": resources.gpus_per_node or None,
        "cpus_per_task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{round(resources.mem_gb * 1024)}M",
        "time": resources.timeout_min or DEFAULT_TIMEOUT_MIN,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "signal_delay_s": resources.notice_s,
        "stderr_to_stdout": True,
        "srun_args": srun,
        "setup": [
            *resources.setup,
            # Not the folder of submission but the code given decides what runs.
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        ],
        "additional_parameters": {"requeue": True, **resources.option_set()},
    }
    return {key: value for key, value in parameters.items() if value is not None}
