"""From requests to batches, in order: loader workers read ahead, or this process reads when a batch is asked for."""

import logging
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.damaged_samples import DamagedSampleError, Replacement
from pipeline.data.pool import WorkerPool
from pipeline.data.reader import ReaderSpec, SampleReader
from pipeline.data.request import Request
from pipeline.tasks.batch import Batch
from pipeline.tasks.layout import Slot

logger = logging.getLogger(__name__)


class BatchSource:
    """An iterator over the batches of a sequence of requests, in their order.

    Workers write into slots of shared memory. A batch borrows its slot's memory and gives the slot back when its last
    tensor is gone; when batches hold more than half of the slots, further ones get a copy.

    Attributes:
        data_wait_s: seconds spent waiting for batches since the caller last reset it.
    """

    def __init__(
        self,
        spec: ReaderSpec,
        requests: Iterator[Request],
        *,
        samples: int,
        workers: int,
        ahead: int,
        max_replacements: int,
        rank: int,
        device: torch.device,
    ) -> None:
        """Start the workers, which begin to read.

        Args:
            spec: what is read, and how.
            requests: samples of each batch.
            samples: greatest number of samples of a request.
            workers: number of worker processes; 0 reads in this process.
            ahead: number of batches that the workers read ahead.
            max_replacements: greatest number of damaged samples that this rank may replace.
            rank: rank of this process, for log messages.
            device: device of the computation; batches for a GPU lie in page-locked memory.
        """
        self.data_wait_s = 0.0
        self._rank = rank
        self._requests, self._layout = requests, spec.layout
        self._max_replacements, self._replacements = max_replacements, 0
        self._pinned = device.type == "cuda"
        self._pool: WorkerPool | None = None
        self._slots = ahead + 2
        # A slot is free, then submitted to the workers, then lent to a batch, then returned when the batch is gone, and
        # free again once the copies to the GPU that were queued by then are done.
        self._free = deque(range(self._slots))
        self._submitted: deque[tuple[int, Request]] = deque()
        self._returned: deque[int] = deque()
        self._copying: deque[tuple[torch.cuda.Event, list[int]]] = deque()
        if workers == 0:
            self._reader = SampleReader(spec)
            return
        self._pool = WorkerPool(spec, workers=workers, slots=self._slots, slot_samples=samples)
        if self._pinned:
            self._page_lock(self._pool.slots.memory)
        self._submit()

    def __iter__(self) -> Iterator[Batch]:
        """Return the iterator itself."""
        return self

    def __next__(self) -> Batch:
        """Wait for the next batch and return it.

        Raises:
            DamagedSampleError: a sample differs from the index and may not be replaced, or too many were replaced.
            LoaderError: a worker failed or was killed.
        """
        started = time.perf_counter()
        batch = self._from_process() if self._pool is None else self._from_pool(self._pool)
        self.data_wait_s += time.perf_counter() - started
        return batch

    def close(self) -> None:
        """End the workers."""
        if self._pool is None:
            self._reader.close()
            return
        if self._pinned:
            torch.cuda.synchronize()
            cudart: Any = torch.cuda.cudart()
            cudart.cudaHostUnregister(self._pool.slots.memory.ctypes.data)
        self._pool.close()

    def _page_lock(self, memory: NDArray[np.uint8]) -> None:
        """Page-lock shared memory for CUDA, so that copies to the GPU overlap with the computation."""
        cudart: Any = torch.cuda.cudart()
        code = cudart.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)
        if int(code) != 0:
            logger.warning(
                "rank %d: the loader's shared memory could not be page-locked (CUDA error %s): copies to the GPU will "
                "be slower",
                self._rank,
                code,
            )

    def _from_process(self) -> Batch:
        """Read the next batch in this process."""
        request = next(self._requests)
        slot = Slot.allocate(len(request.rows), self._layout)
        slot.rows[:], slot.epochs[:] = request.rows, request.epochs
        replaced = self._reader.fill(slot)
        pixels, labels = slot.arrays(len(request.rows), self._layout)
        images = _as_images(pixels)
        return self._batch(request, images.pin_memory() if self._pinned else images, labels, replaced, slot)

    def _from_pool(self, pool: WorkerPool) -> Batch:
        """Take the next batch from the workers."""
        self._reclaim()
        self._submit()
        if not self._submitted:
            raise StopIteration
        index, request = self._submitted.popleft()
        replaced = pool.wait(index)
        count = len(request.rows)
        slot = pool.slots[index]
        pixels, labels = slot.arrays(count, self._layout)
        labels = labels.copy()
        if self._slots - len(self._free) - len(self._submitted) <= self._slots // 2:
            weakref.finalize(pixels, self._returned.append, index)
            images = _as_images(pixels)
        else:  # batches hold more than half of the slots: copy, and keep this slot for the workers
            images = _as_images(pixels.copy())
            images = images.pin_memory() if self._pinned else images
            self._free.append(index)
        batch = self._batch(request, images, labels, replaced, slot)
        self._submit()
        return batch

    def _submit(self) -> None:
        """Write requests into free slots and submit them to the workers."""
        assert self._pool is not None
        while self._free:
            request = next(self._requests, None)
            if request is None:
                return
            index = self._free.popleft()
            slot: Slot = self._pool.slots[index]
            slot.rows[: len(request.rows)] = request.rows
            slot.epochs[: len(request.rows)] = request.epochs
            self._pool.submit(index, len(request.rows))
            self._submitted.append((index, request))

    def _reclaim(self) -> None:
        """Free the slots of batches that no tensor refers to; for a GPU, once its queued copies are done."""
        returned = [self._returned.popleft() for _ in range(len(self._returned))]
        if not self._pinned:
            self._free.extend(returned)
        elif returned:
            event = torch.cuda.Event()
            event.record()
            self._copying.append((event, returned))
        while self._copying and self._copying[0][0].query():
            self._free.extend(self._copying.popleft()[1])

    def _batch(
        self, request: Request, images: Tensor, labels: NDArray[Any], replaced: list[Replacement], slot: Slot
    ) -> Batch:
        """Build a batch, and count and log its replaced samples.

        Raises:
            DamagedSampleError: more samples were replaced than allowed.
        """
        substitutes = np.full(len(request.rows), -1, np.int64)
        for entry in replaced:
            substitutes[request.rows == entry.row] = entry.substitute
            self._replacements += 1
            counted = f"{self._replacements} of at most {self._max_replacements}"
            logger.warning(
                "rank %d, step %d: replaced a damaged sample (%s): %s", self._rank, request.step, counted, entry.reason
            )
        if self._replacements > self._max_replacements:
            raise DamagedSampleError(
                f"rank {self._rank} replaced {self._replacements} damaged samples, "
                f"more than --train.data.max-replacements {self._max_replacements}; the last: {replaced[-1].reason}"
            )
        return Batch(
            images=images,
            labels=torch.from_numpy(labels),
            indices=torch.from_numpy(request.rows),
            epochs=torch.from_numpy(request.epochs),
            substitutes=torch.from_numpy(substitutes),
            groups=torch.from_numpy(request.groups),
            step=request.step,
            micro_step=request.micro_step,
            sizes=torch.from_numpy(slot.sizes[: len(request.rows)].copy()) if self._layout.is_raw else None,
        )


def _as_images(pixels: NDArray[np.uint8]) -> Tensor:
    """View pixels uint8 [N, H, W, 3] as a tensor uint8 [N, 3, H, W] over the same memory; raw ones as they are."""
    images = torch.from_numpy(pixels)
    return images.permute(0, 3, 1, 2) if images.ndim == 4 else images
