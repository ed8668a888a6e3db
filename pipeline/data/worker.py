"""A loader worker: a helper process of a rank, started and ended by `pipeline.data.pool`.

The worker receives chunks of a micro-batch on one socket, writes their pixels and labels into shared memory, and sends
a report on each chunk through another socket.
"""

import gc
import os
import pickle
import socket
import struct
import traceback
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.common.processes import become_helper
from pipeline.data.damaged_samples import DamagedSampleError, Replacement
from pipeline.data.reader import ReaderSpec, SampleReader
from pipeline.data.slots import SharedSlots

TASK = struct.Struct("=iii")
"""Wire format of a chunk to read: slot, first sample in the slot, number of samples."""
MAX_REPORT = 1 << 16
"""Greatest size of a pickled `Report`, in bytes."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to start.

    Attributes:
        reader: what the worker reads, and how.
        slots: number of slots.
        slot_samples: number of samples of each slot.
        workers: number of workers.
    """

    reader: ReaderSpec
    slots: int
    slot_samples: int
    workers: int


@dataclass(frozen=True)
class Report:
    """A worker's report on one chunk.

    Attributes:
        slot: slot that the chunk is part of.
        samples: number of samples in the chunk.
        replaced: damaged samples of the chunk and their substitutes.
        problem: `damaged` if a sample is damaged and may not be replaced, `failed` if anything else went wrong, or
            None.
        message: error message for the user, if there is a problem.
    """

    slot: int
    samples: int
    replaced: tuple[Replacement, ...] = ()
    problem: Literal["damaged", "failed"] | None = None
    message: str = ""


def _open_reader(spec: ReaderSpec, reading: NDArray[np.int64]) -> SampleReader:
    """Build the reader, which notes in `reading` what it reads.

    Then exempt all existing objects from garbage collection, which takes 3 % of the time.
    """
    reader = SampleReader(spec, reading)
    gc.collect()
    gc.freeze()
    return reader


def main() -> None:
    """Read chunks until the rank closes the socket or dies."""
    number, spec_fd, slots_fd, tasks_fd, reports_fd = (int(text) for text in become_helper())
    spec: WorkerSpec = pickle.loads(os.pread(spec_fd, os.fstat(spec_fd).st_size, 0))
    cv2.setNumThreads(1)
    slots = SharedSlots(spec.slots, spec.slot_samples, spec.reader.layout, spec.workers, slots_fd)
    reader: SampleReader | None = None
    with socket.socket(fileno=tasks_fd) as tasks, socket.socket(fileno=reports_fd) as reports:
        while task := tasks.recv(TASK.size):
            index, first, count = TASK.unpack(task)
            slot, chunk = slots[index], slice(first, first + count)
            try:
                reader = reader or _open_reader(spec.reader, slots.reading[number : number + 1])
                replaced = reader.fill(slot.part(chunk))
                report = Report(index, count, tuple(replaced))
            except DamagedSampleError as error:
                report = Report(index, count, problem="damaged", message=str(error))
            except Exception as error:
                message = f"loader worker {os.getpid()} failed: {error}\n{traceback.format_exc()}"[: MAX_REPORT // 4]
                report = Report(index, count, problem="failed", message=message)
            try:
                reports.send(pickle.dumps(report))
            except OSError:
                return  # the rank closed the socket
