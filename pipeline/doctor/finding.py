"""One thing that the doctor found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        level: `problem` is what a training would fail on here, `warning` what would slow it or surprise its user.
        text: what is so; for a warning or a problem also what to do.
    """

    level: Level
    text: str

    def line(self) -> str:
        """Return the line as it is printed."""
        return f"  {self.level:<8} {self.text}"
