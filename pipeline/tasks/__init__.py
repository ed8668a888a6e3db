"""What is learned, as plug-ins: each folder here is one task, and `task` is the protocol that they implement.

Everything else in `pipeline` knows the protocol and the primary metric (`metric`), and asks `registry` for the task
of a name. No torch is imported before it is needed, because loader workers and `status` use tasks as well.
"""

from pipeline.tasks.metric import Metric, Score, Scores, stored_metric, was_evaluated
from pipeline.tasks.registry import DEFAULT, find_task
from pipeline.tasks.task import Task

__all__ = ["DEFAULT", "Metric", "Score", "Scores", "Task", "find_task", "stored_metric", "was_evaluated"]
