"""What ends a training, said for the user."""


class TrainingError(RuntimeError):
    """A training that cannot go on; the message is for the user."""


class NotFiniteError(RuntimeError):
    """A step whose loss or gradient is not finite; raised on every rank."""

    def __init__(self, step: int, message: str) -> None:
        """Keep the number of the step, counted from 1."""
        super().__init__(message)
        self.step = step
