"""Where and when processes run, and what happens when the cluster interrupts them.

The package starts any Python function in every process of a job. It uses Submitit and the standard library, and knows
nothing of what the processes compute.
"""

from jobs.array import submit_array, wait_all
from jobs.attempt_log import last_outcome as job_outcome
from jobs.errors import JobError, SlurmError
from jobs.exclusion import exclude_nodes
from jobs.folder_lock import is_running_locally
from jobs.folders import private_directory
from jobs.job_report import describe_machine
from jobs.leave import run_and_leave
from jobs.notice import Notice, find_notices, notices_from_environment, too_short
from jobs.partitions import NodeGroup, fit_resources, node_groups, with_cores
from jobs.rendezvous import node_name
from jobs.resources import Resources
from jobs.slurm import Cluster, check_script, choose_cluster
from jobs.snapshot import Code, take_snapshot
from jobs.submission import Submission, Update
from jobs.submission_file import forget_submission, logs_folder
from jobs.submit import attach, describe_local, dry_run, submit
from jobs.task import Outcome, StopRequested, Task

__all__ = [
    "Cluster",
    "Code",
    "JobError",
    "NodeGroup",
    "Notice",
    "Outcome",
    "Resources",
    "SlurmError",
    "StopRequested",
    "Submission",
    "Task",
    "Update",
    "attach",
    "check_script",
    "choose_cluster",
    "describe_local",
    "describe_machine",
    "dry_run",
    "exclude_nodes",
    "find_notices",
    "fit_resources",
    "forget_submission",
    "is_running_locally",
    "job_outcome",
    "logs_folder",
    "node_groups",
    "node_name",
    "notices_from_environment",
    "private_directory",
    "run_and_leave",
    "submit",
    "submit_array",
    "take_snapshot",
    "too_short",
    "wait_all",
    "with_cores",
]
