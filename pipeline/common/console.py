"""Numbers as people read them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`, of a number of seconds."""
    total = round(seconds)
    hours, minutes = total // 3600, total // 60 % 60
    return f"{hours}:{minutes:02d}:{total % 60:02d}" if hours else f"{minutes}:{total % 60:02d}"


LINE_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""
