"""What the training, the evaluation and the registry ask of a task: the protocol that each task implements."""

from typing import Protocol

from pipeline.tasks.metric import Scores


class Task(Protocol):
    """What is learned, as a plug-in: everything outside `pipeline.tasks` knows a task by this protocol alone."""

    @property
    def name(self) -> str:
        """Name in the configuration, such as `classification`."""
        ...

    @property
    def scores(self) -> Scores:
        """What an evaluation of the task gives."""
        ...

    @property
    def answer(self) -> str:
        """Columns that a registered model answers with, for texts."""
        ...
