"""A loader worker: a process that `pipeline.data_pool` starts in `main`, and ends.

It is a fresh interpreter without torch, so it starts in a fifth of a second and shares no locks, threads or CUDA
context with the training. It takes chunks of a batch from a socket, writes their pixels into shared memory, and says
so on another.
"""

import ctypes
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from dataclasses import dataclass
from typing import Literal

import cv2

from pipeline.data_reader import DamagedSampleError, ReaderSpec, Replacement, SampleReader
from pipeline.data_slots import SharedSlots

TASK = struct.Struct("=iii")
"""A chunk to read: slot, first sample in it, number of samples."""
MAX_REPORT = 1 << 16
PREEMPTION_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Sent to every process of a job; what they mean is for the training to decide, which then ends its workers."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is told when it starts.

    Attributes:
        reader: what is read and how.
        slots: number of slots.
        slot_samples: samples of a slot.
        parent: process id of the training.
    """

    reader: ReaderSpec
    slots: int
    slot_samples: int
    parent: int


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


def main() -> None:
    """Read chunks until the training closes its end or dies."""
    spec_fd, slots_fd, tasks_fd, reports_fd = (int(text) for text in sys.argv[1:5])
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PREEMPTION_SIGNALS)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    spec: WorkerSpec = pickle.loads(os.pread(spec_fd, os.fstat(spec_fd).st_size, 0))
    if os.getppid() != spec.parent:
        return
    cv2.setNumThreads(1)
    slots = SharedSlots(spec.slots, spec.slot_samples, spec.reader.image_size, slots_fd)
    reader: SampleReader | None = None
    with socket.socket(fileno=tasks_fd) as tasks, socket.socket(fileno=reports_fd) as reports:
        while task := tasks.recv(TASK.size):
            index, first, count = TASK.unpack(task)
            slot, chunk = slots[index], slice(first, first + count)
            try:
                reader = reader or SampleReader(spec.reader)
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
