"""How long an attempt takes from the start of its process to its first finished step, and with what."""

import time


class StartUp:
    """A stopwatch over this process's start; the parts are in seconds and their sum is the whole."""

    def __init__(self) -> None:
        """Take what has passed since the process began as the first part, `launch`."""
        import psutil

        self.began = psutil.Process().create_time()
        """Unix seconds."""
        self._last = time.monotonic()
        self.parts: dict[str, float] = {"launch": max(0.0, time.time() - self.began)}
        """Seconds by name, in the order in which they began."""

    def lap(self, part: str) -> None:
        """Add the time since the last call to `part`."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """All parts together."""
        return sum(self.parts.values())

    def words(self) -> str:
        """One line for the log: `first step 9.3 s after the start of the process (launch 0.5, imports 3.1, …)`."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts.items())
        return f"first step {self.seconds:.1f} s after the start of the process ({parts})"
