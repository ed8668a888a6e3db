"""The errors that this package raises. Their messages say what to do and need no traceback."""


class JobError(ValueError):
    """A job cannot be submitted, or cannot go on."""


class SlurmError(JobError):
    """A Slurm command is not installed, fails, or does not answer in time."""
