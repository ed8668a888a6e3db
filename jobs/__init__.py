"""Where and when processes run, and what happens when the cluster takes them away.

It can launch any function; it knows Submitit and the standard library, and nothing of what the processes compute.
"""

from jobs.array import submit_array, wait_all
from jobs.cluster import Cluster, choose_cluster
from jobs.errors import JobError, NoAnswer
from jobs.folders import private_directory
from jobs.notice import Notice, notices, told_notices, too_short
from jobs.partitions import fit, node_groups
from jobs.presence import works_here
from jobs.resources import Resources
from jobs.snapshot import Code, settle
from jobs.submission import Submission, Update
from jobs.submit import attach, dry_run, local_words, submit
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
