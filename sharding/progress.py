"""What a build says while it works: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts images and bytes as shards become ready, and shows rates and the time that remains."""

    def __init__(self, title: str, total_samples: int | None) -> None:
        self.title, self.total = title, total_samples
        self.samples = self.written_samples = self.written_bytes = 0
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(total=total_samples, desc=title, unit="img", smoothing=0, disable=not sys.stderr.isatty())

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def add(self, samples: int, size: int, *, written: bool) -> None:
        """A shard is ready.

        Args:
            samples: images in it.
            size: its bytes.
            written: False if it was found finished; it then does not count in the rates.
        """
        self.samples += samples
        if written:
            self.written_samples += samples
            self.written_bytes += size
        elif not self.bar.disable:
            self.bar.initial += samples
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.bar.set_postfix_str(f"{self.written_bytes / seconds / 1e6:.0f} MB/s", refresh=False)
        self.bar.update(samples)
        now = time.monotonic()
        if self.bar.disable and (now - self.last_line >= _SECONDS_BETWEEN_LINES):
            self.last_line = now
            print(self.line(seconds), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """One line for a log."""
        rate = self.written_samples / seconds
        rates = f"{rate:,.0f} images/s, {self.written_bytes / seconds / 1e6:,.0f} MB/s"
        if self.total is None:
            return f"{self.title}: {self.samples:,} images, {rates}"
        left = f"{(self.total - self.samples) / rate:,.0f} s left" if rate else "no rate yet"
        return f"{self.title}: {self.samples:,} of {self.total:,} images, {rates}, {left}"
