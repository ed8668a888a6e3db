"""Durations and remaining times in lines for the user."""

LINE_EVERY_S = 10.0
"""Seconds between two progress lines where there is no terminal."""


def duration(seconds: float) -> str:
    """Format a number of seconds as `1:02:03` or `2:03`."""
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    return f"{hours}:{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"


def format_remaining(left: int, done: int, seconds: float) -> str:
    """Format the end of a progress line, `  remaining 1:02:03`; empty while nothing is done.

    Args:
        left: steps or images that are still to do.
        done: steps or images that took `seconds`.
        seconds: time that they took.
    """
    return f"  remaining {duration(seconds / done * left)}" if done > 0 else ""
