"""Where and when processes run, and what happens when the cluster interrupts them.

The package starts any Python function in every process of a job. It uses Submitit and the standard library, and knows
nothing of what the processes compute.
"""

from jobs.array import submit_array, wait_all
from jobs.errors import JobError, NoAnswer
from jobs.folder_lock import is_running_locally as works_here
from jobs.folders import private_directory
from jobs.notice import Notice, too_short
from jobs.notice import find_notices as notices
from jobs.notice import notices_from_environment as told_notices
from jobs.partitions import fit_resources as fit
from jobs.partitions import node_groups
from jobs.resources import Resources
from jobs.slurm import Cluster, choose_cluster
from jobs.snapshot import Code
from jobs.snapshot import take_snapshot as settle
from jobs.submission import Submission, Update
from jobs.submit import attach, dry_run, submit
from jobs.submit import describe_local as local_words
from jobs.task import Outcome, StopRequested, Task

__all__ = [
    "Cluster",
    "Code",
    "JobError",
    "NoAnswer",
    "Notice",
    "Outcome",
    "Resources",
    "StopRequested",
    "Submission",
    "Task",
    "Update",
    "attach",
    "choose_cluster",
    "dry_run",
    "fit",
    "local_words",
    "node_groups",
    "notices",
    "private_directory",
    "settle",
    "submit",
    "submit_array",
    "told_notices",
    "too_short",
    "wait_all",
    "works_here",
]
