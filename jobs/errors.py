"""What this package raises for its users."""


class JobError(ValueError):
    """A job cannot be submitted, or cannot go on; the text says what to do and needs no traceback."""


class NoAnswer(JobError):
    """A command of the cluster is missing, fails or does not answer."""
