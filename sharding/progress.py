"""Progress of a command on stderr: a bar on a terminal, one line every 30 seconds in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from sharding.console import print_status

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts the images and bytes of finished shards; shows the rates and the time left."""

    def __init__(self, title: str, total_samples: int | None) -> None:
        self.title, self.total = title, total_samples
        self.samples = self.written_samples = self.written_bytes = 0
        self.started = self.last_line = time.monotonic()
        self.bar = tqdm(total=total_samples, desc=title, unit="img", smoothing=0, disable=not sys.stderr.isatty())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, samples: int, size: int, *, written: bool) -> None:
        """Count a finished shard.

        Args:
            samples: number of images in the shard.
            size: size of the shard in bytes.
            written: False if an earlier build finished the shard; the rates then leave it out.
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
            print_status(self.line(seconds))

    def line(self, seconds: float) -> str:
        """Format one line for a log, `seconds` after the start."""
        rate = self.written_samples / seconds
        rates = f"{rate:,.0f} images/s, {self.written_bytes / seconds / 1e6:,.0f} MB/s"
        if self.total is None:
            return f"{self.title}: {self.samples:,} images, {rates}"
        left = f"{(self.total - self.samples) / rate:,.0f} s left" if rate else "no rate yet"
        return f"{self.title}: {self.samples:,} of {self.total:,} images, {rates}, {left}"
