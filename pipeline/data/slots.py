"""Micro-batches in memory that a rank shares with its loader workers. No torch: the workers import this module."""

import math
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.layout import Layout, Slot

_PAGE = mmap.PAGESIZE
_NUMBERS = 6
"""Integers of a sample: its row, its epoch and four sizes."""


class SharedSlots:
    """Slots in anonymous shared memory (`memfd_create`), which other processes map through an inherited descriptor.

    The memory has no name, so a killed process leaves nothing behind, and the size of /dev/shm, often 64 MB in
    containers, does not limit it.

    Attributes:
        descriptor: descriptor of the memory.
        memory: uint8 [bytes], all of it.
        reading: int64 [workers], row of the sample that each worker reads, -1 for none: if it dies, the rank says what
            it was reading.
    """

    def __init__(self, count: int, samples: int, layout: Layout, workers: int, descriptor: int | None = None) -> None:
        """Create slots, or map those that another process created.

        Args:
            count: number of slots.
            samples: number of samples N of each slot.
            layout: how a sample lies in memory.
            workers: number of processes that write into them.
            descriptor: descriptor of existing slots of the same layout; None creates new ones.
        """
        self._samples, self._layout = samples, layout
        self._pixels_end = _aligned(samples * math.prod(layout.pixels))
        self._labels_end = self._pixels_end + _aligned(
            samples * math.prod(layout.labels) * np.dtype(layout.dtype).itemsize
        )
        size = -(-(self._labels_end + _NUMBERS * 8 * samples) // _PAGE) * _PAGE
        total = count * size + -(-8 * workers // _PAGE) * _PAGE
        is_new = descriptor is None
        if descriptor is None:
            descriptor = os.memfd_create("loader-slots")
            os.ftruncate(descriptor, total)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, total)
        self.memory = np.frombuffer(self._map, np.uint8)
        self.reading = self.memory[count * size : count * size + 8 * workers].view(np.int64)
        if is_new:
            self.reading[:] = -1
        self._slots = [self._view(self.memory[i * size : (i + 1) * size]) for i in range(count)]

    def __getitem__(self, index: int) -> Slot:
        """The slot at an index."""
        return self._slots[index]

    def _view(self, memory: NDArray[np.uint8]) -> Slot:
        samples, layout = self._samples, self._layout
        labels = memory[self._pixels_end : self._labels_end].view(layout.dtype)
        numbers = memory[self._labels_end : self._labels_end + _NUMBERS * 8 * samples].view(np.int64)
        return Slot(
            memory[: samples * math.prod(layout.pixels)].reshape(samples, *layout.pixels),
            labels[: samples * math.prod(layout.labels)].reshape(samples, *layout.labels),
            numbers[:samples],
            numbers[samples : 2 * samples],
            numbers[2 * samples :].reshape(samples, 4),
        )


def _aligned(size: int) -> int:
    return -(-size // 64) * 64
