"""What an evaluation says while it works: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.common.console import LINE_EVERY_S, duration

if TYPE_CHECKING:
    from pipeline.data.batch import Batch


def shown(batches: "Iterable[Batch]", total: int) -> "Iterator[Batch]":
    """Yield the batches; each counts when the next one is asked for, so when its work is done.

    Args:
        batches: of an evaluation.
        total: images in all of them.
    """
    from tqdm import tqdm

    began, said, done = time.monotonic(), 0.0, 0
    terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="img", smoothing=0, dynamic_ncols=True, disable=not terminal) as bar:
        for batch in batches:
            yield batch
            done += len(batch.labels)
            bar.update(len(batch.labels))
            now = time.monotonic()
            if not terminal and now - max(began, said) >= LINE_EVERY_S:
                said = now
                rate = done / (now - began)
                words = f"image {done:,}/{total:,}  images/s {rate:.0f}  remaining {duration((total - done) / rate)}"
                print(words, file=sys.stderr, flush=True)
