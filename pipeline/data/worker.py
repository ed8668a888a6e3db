"""A loader worker: a helper process that `pipeline.data.pool` starts in `main`, and ends.

It takes chunks of a batch from a socket, writes their pixels into shared memory, and says
so on another.
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

from pipeline.common.processes import become_helper
from pipeline.data.reader import DamagedSampleError, ReaderSpec, Replacement, SampleReader
from pipeline.data.slots import SharedSlots

TASK = struct.Struct("=iii")
"""A chunk to read: slot, first sample in it, number of samples."""
MAX_REPORT = 1 << 16


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is told when it starts.

    Attributes:
        reader: what is read and how.
        slots: number of slots.
        slot_samples: samples of a slot.
    """

    reader: ReaderSpec
    slots: int
    slot_samples: int


@dataclass(frozen=True)
class Report:
    """What a worker says of a chunk.

    Attributes:
        slot: that the chunk is part of.
        samples: that were read.
        replaced: samples among them that were damaged.
        problem: why the chunk could not be read: `damaged` data, or a `failed` worker.
        message: for the user, where there was a problem.
    """

    slot: int
    samples: int
    replaced: tuple[Replacement, ...] = ()
    problem: Literal["damaged", "failed"] | None = None
    message: str = ""


def _open_reader(spec: ReaderSpec) -> SampleReader:
    """A reader, with all that is imported by then set aside from Python's collector, which takes 3 % of the time."""
    reader = SampleReader(spec)
    gc.collect()
    gc.freeze()
    return reader


def main() -> None:
    """Read chunks until the training closes its end or dies."""
    spec_fd, slots_fd, tasks_fd, reports_fd = (int(text) for text in become_helper())
    spec: WorkerSpec = pickle.loads(os.pread(spec_fd, os.fstat(spec_fd).st_size, 0))
    cv2.setNumThreads(1)
    slots = SharedSlots(spec.slots, spec.slot_samples, spec.reader.image_size, slots_fd)
    reader: SampleReader | None = None
    with socket.socket(fileno=tasks_fd) as tasks, socket.socket(fileno=reports_fd) as reports:
        while task := tasks.recv(TASK.size):
            index, first, count = TASK.unpack(task)
            slot, chunk = slots[index], slice(first, first + count)
            try:
                reader = reader or _open_reader(spec.reader)
                replaced = reader.fill(slot.rows[chunk], slot.epochs[chunk], slot.pixels[chunk], slot.labels[chunk])
                report = Report(index, count, tuple(replaced))
            except DamagedSampleError as error:
                report = Report(index, count, problem="damaged", message=str(error))
            except Exception as error:
                message = f"{error}\n{traceback.format_exc()}"[: MAX_REPORT // 4]
                report = Report(index, count, problem="failed", message=message)
            try:
                reports.send(pickle.dumps(report))
            except OSError:
                return  # the training closed its end
