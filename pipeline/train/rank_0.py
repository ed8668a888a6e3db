"""What rank 0 alone does with the run directory, so that no other rank waits for it if it fails."""

from collections.abc import Callable
from typing import TypeVar

from pipeline.common.errors import TrainingError
from pipeline.engine.distributed import World, broadcast_from_main
from pipeline.run.files import RunDirectoryError

Result = TypeVar("Result")


def on_rank_0(world: World, action: Callable[[], Result]) -> Result | None:
    """Run `action` on rank 0 and return its result there, None elsewhere. Collective.

    Raises:
        TrainingError: on every rank, if `action` raised a `RunDirectoryError`: no rank then waits for rank 0.
    """
    value, problem = None, None
    if world.is_main:
        try:
            value = action()
        except RunDirectoryError as error:
            problem = str(error)
    problem = broadcast_from_main(problem)
    if problem is not None:
        raise TrainingError(str(problem))
    return value
