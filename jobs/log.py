"""The one way in which this package writes to the terminal, or to the log of a rank."""


def log(message: str) -> None:
    """Print a message and flush it, so that it is in the log even when the process is killed next."""
    print(message, flush=True)
