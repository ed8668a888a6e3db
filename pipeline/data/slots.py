"""Micro-batches in memory that a rank shares with its loader workers. No torch: the workers import this module."""

import mmap
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Slot:
    """Memory for one micro-batch of up to N samples.

    The rank writes `rows` and `epochs`; the loader workers write `pixels` and `labels`.

    Attributes:
        pixels: uint8 [N, H, W, 3], RGB.
        rows: int64 [N], row of each sample in the index.
        epochs: int64 [N], epoch in which each sample is read.
        labels: int64 [N], class of each sample.
    """

    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    epochs: NDArray[np.int64]
    labels: NDArray[np.int64]

    @classmethod
    def allocate(cls, samples: int, side: int) -> "Slot":
        """Allocate a slot of `samples` samples of `side` x `side` pixels in the memory of this process."""
        return cls(np.empty((samples, side, side, 3), np.uint8), *(np.empty(samples, np.int64) for _ in range(3)))


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

    def __init__(self, count: int, samples: int, side: int, workers: int, descriptor: int | None = None) -> None:
        """Create slots, or map those that another process created.

        Args:
            count: number of slots.
            samples: number of samples N of each slot.
            side: height and width of the pixels.
            workers: number of processes that write into them.
            descriptor: descriptor of existing slots of the same shape; None creates new ones.
        """
        pixels = samples * side * side * 3
        self._pixels_end = -(-pixels // 64) * 64
        size = -(-(self._pixels_end + 3 * 8 * samples) // _PAGE) * _PAGE
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
        self._slots = [self._view(self.memory[i * size : (i + 1) * size], samples, side) for i in range(count)]

    def __getitem__(self, index: int) -> Slot:
        """The slot at an index."""
        return self._slots[index]

    def _view(self, memory: NDArray[np.uint8], samples: int, side: int) -> Slot:
        numbers = memory[self._pixels_end : self._pixels_end + 3 * 8 * samples].view(np.int64).reshape(3, samples)
        return Slot(memory[: samples * side * side * 3].reshape(samples, side, side, 3), *numbers)
