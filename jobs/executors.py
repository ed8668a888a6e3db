"""Submitit's executors, set up for the processes of one distributed job."""

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

from jobs.folder_lock import lock_folder
from jobs.lost_ranks import CHAINED
from jobs.resources import DEFAULT_TIMEOUT_MIN, Resources
from jobs.slurm import Cluster
from jobs.stop_flag import stop_signals_blocked

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

NO_TIMEOUT_LIMIT = 1_000_000
"""Submitit's limit on time-outs, set so high that it has no effect.

With a time limit of 10 minutes or less Submitit counts every signal as a time-out. This package counts attempts without
progress instead.
"""

Executor = core.Executor


START = 'trap "" TERM INT USR1 USR2; b="env --block-signal=TERM,INT,USR1,USR2"; $b true 2>/dev/null || b=; exec $b "$@"'
"""Shell script that starts its arguments as a process in which the stop signals are blocked, or ignored.

A stop signal that arrives while the interpreter starts would kill the rank, and the job would be FAILED. With
coreutils 8.31 or later the signal stays pending until `jobs.rank` handles it; before, it is lost.
"""


FIND_APPTAINER = (
    "container=$(command -v apptainer || command -v singularity) || "
    '{ echo "$(hostname) has neither apptainer nor singularity on its PATH: load a module with --setup" >&2; exit 1; }'
)
"""Line of the batch script that finds the program which opens a .sif image."""


def rank_command(python: str, folder: Path) -> str:
    """The shell command that each process runs."""
    return f"{python} -u -m jobs.rank {shlex.quote(str(folder))}"


class Slurm(SlurmExecutor):
    """Submits with sbatch, and starts `jobs.rank`. It can be built without Slurm, to show the script."""

    @classmethod
    def affinity(cls) -> int:
        """Claim that Slurm is there; where it is not, sbatch fails later."""
        return 2

    enters_container = ""
    """The words before the command of a rank that start it in a container, where srun itself does not do that."""

    @property
    def _submitit_command_str(self) -> str:
        words = [f"sh -c {shlex.quote(START)} sh", self.enters_container, rank_command(self.python, self.folder)]
        return " ".join(filter(None, words))

    def script(self, elements: int = 1) -> str:
        """The script that `submit` would give to sbatch, or `submit_array` for that many elements."""
        if elements > 1:
            self.parameters["map_count"] = elements
        return self._make_submission_file_text(self._submitit_command_str, "")


class Local(LocalExecutor):
    """Starts `jobs.controller`, which starts the processes on this machine."""

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
        lock = lock_folder(self.folder)
        log_path = self.folder / f"{job_id}_controller.log"
        with log_path.open("a", encoding="utf-8") as log_file, stop_signals_blocked():
            process = subprocess.Popen(
                " && ".join([*resources.setup, controller]),
                shell=True,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        os.close(lock)
        return LocalJob(self.folder, job_id, tasks=list(range(resources.world_size)), process=process)


class Debug(DebugExecutor):
    """Runs the job in this process, when its result is asked for."""

    def _internal_process_submissions(self, delayed_submissions: "list[DelayedSubmission]") -> list[core.Job[Any]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return super()._internal_process_submissions(delayed_submissions)


def build_executor(
    cluster: Cluster, folder: Path, resources: Resources, name: str, *, code: Path, attached: bool = True
) -> Executor:
    """Build the executor of a cluster for one job.

    Args:
        cluster: cluster on which the job runs.
        folder: folder of the scripts, pickles and logs, on a file system that all nodes share.
        resources: resources of the job, already checked.
        name: name of the job in the queue.
        code: folder with the packages that the processes import.
        attached: whether a job on the local cluster stops when this process ends.
    """
    folder = folder.absolute()
    if cluster == "local":
        return Local(folder, resources, code, attached=attached)
    if cluster == "debug":
        return Debug(folder)
    python = resources.python or ("python3" if resources.container_image else shlex.quote(sys.executable))
    executor = Slurm(folder, max_num_timeout=NO_TIMEOUT_LIMIT, python=python)
    if resources.uses_apptainer:
        gpus = "--nv " if resources.gpus_per_node else ""
        mounts = shlex.quote(resources.container_mounts or _mounts(folder, code))
        image = shlex.quote(str(resources.container_image))
        executor.enters_container = f'"$container" exec {gpus}--bind {mounts} {image}'
    after_failure = f"{python} -m jobs.lost_ranks {shlex.quote(str(folder))} $status {resources.max_stalls}"
    after_failure += "" if resources.chain is None else f" {CHAINED}"
    executor.update_parameters(
        **_slurm_parameters(resources, name, folder, code),
        # Submitit's own one may be refused where such keys are enforced.
        wckey=None,
        # At the first line of the teardown, $? is still the exit status of srun. Slurm sends TERM when the job is
        # requeued, and only then can be told which nodes to leave out.
        teardown=["status=$?", f"[ $status -eq 0 ] || {{ trap '' TERM; {after_failure}; status=$?; }}", "exit $status"],
    )
    return executor


def _mounts(folder: Path, code: Path) -> str:
    """The container's default mounts: the run's folder, the code, and the working directory for relative paths."""
    return ",".join(f"{path}:{path}" for path in dict.fromkeys((folder.parent, code, Path.cwd())))


def _slurm_parameters(resources: Resources, name: str, folder: Path, code: Path) -> dict[str, Any]:
    # srun inherits neither the number of cores (since Slurm 22.05) nor the open mode from sbatch; with --wait=0 it lets
    # rank 0 end its work after the other ranks have left; with --export=ALL the ranks get the variables of the script
    # also where sbatch was told to pass on none.
    srun = ["--kill-on-bad-exit=1", "--wait=0", "--export=ALL", "--open-mode=append"]
    if resources.cpus_per_task is not None:
        srun.append(f"--cpus-per-task={resources.cpus_per_task}")
    if resources.container_image and not resources.uses_apptainer:
        mounts = resources.container_mounts or _mounts(folder, code)
        srun += [f"--container-image={resources.container_image}", f"--container-mounts={mounts}"]
    options = resources.option_set()
    parameters: dict[str, Any] = {
        "dependency": options.pop("dependency", None),
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
            *([FIND_APPTAINER] if resources.uses_apptainer else []),
            # The processes import the given code, not the packages in the folder of submission.
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1",
        ],
        "additional_parameters": {"requeue" if resources.chain is None else "no-requeue": True, **options},
    }
    return {key: value for key, value in parameters.items() if value is not None}
