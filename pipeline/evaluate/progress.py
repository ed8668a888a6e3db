"""Progress of an evaluation on stderr: a bar on a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.common.console import LINE_EVERY_S, format_remaining

if TYPE_CHECKING:
    from pipeline.tasks.batch import Batch


def with_progress(batches: "Iterable[Batch]", total: int) -> "Iterator[Batch]":
    """Yield the batches and show how many images are done.

    The images of a batch count as done once the next batch is asked for.

    Args:
        batches: the batches of an evaluation.
        total: number of images in all of them.
    """
    from tqdm import tqdm

    started = last_line = time.monotonic()
    done = 0
    is_terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="img", smoothing=0, dynamic_ncols=True, disable=not is_terminal) as bar:
        for batch in batches:
            yield batch
            done += len(batch.labels)
            bar.update(len(batch.labels))
            now = time.monotonic()
            if not is_terminal and now - last_line >= LINE_EVERY_S:
                last_line = now
                remaining = format_remaining(total - done, done, now - started)
                line = f"image {done:,}/{total:,}  images/s {done / (now - started):.0f}{remaining}"
                print(line, file=sys.stderr, flush=True)
