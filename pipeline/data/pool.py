"""The rank's side of its loader workers: start them, send them chunks, collect their reports, end them."""

import os
import pickle
import select
import signal
import socket
import subprocess
from collections import deque

from pipeline.common.processes import end_helper, start_helper
from pipeline.data import worker as worker_module
from pipeline.data.damaged_samples import DamagedSampleError, Replacement
from pipeline.data.reader import LoaderError, ReaderSpec, describe_sample
from pipeline.data.slots import SharedSlots
from pipeline.data.worker import MAX_REPORT, TASK, Report, WorkerSpec

_CHUNK = 32
"""Greatest number of samples in a chunk."""
_CHECK_S = 1.0
"""Seconds without a report after which the rank checks that its workers are alive."""


class WorkerPool:
    """The loader workers of a rank: they fill slots chunk by chunk, and a free worker takes the next chunk."""

    def __init__(self, spec: ReaderSpec, *, workers: int, slots: int, slot_samples: int) -> None:
        """Start the workers.

        Args:
            spec: what the workers read, and how.
            workers: number of worker processes, at least 1.
            slots: number of slots, each for one micro-batch.
            slot_samples: number of samples of a micro-batch.
        """
        self._spec = spec
        self.slots = SharedSlots(slots, slot_samples, spec.layout, workers)
        self._missing = [0] * slots
        self._replaced: list[list[Replacement]] = [[] for _ in range(slots)]
        self._chunk = max(1, min(_CHUNK, -(-slot_samples // workers)))
        self._unsent: deque[bytes] = deque()
        self._tasks, worker_tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._reports, worker_reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._tasks.setblocking(False)
        spec_fd = os.memfd_create("loader-spec")
        os.write(spec_fd, pickle.dumps(WorkerSpec(spec, slots, slot_samples, workers)))
        inherited = (spec_fd, self.slots.descriptor, worker_tasks.fileno(), worker_reports.fileno())
        self._workers: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(workers):
                arguments = [str(value) for value in (number, *inherited)]
                self._workers.append(start_helper(worker_module.__name__, arguments, inherited))
        finally:
            os.close(spec_fd)
            worker_tasks.close()
            worker_reports.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    def submit(self, slot: int, samples: int) -> None:
        """Have the workers read the first `samples` samples of a slot, and return at once.

        The caller has written their rows and epochs into the slot.
        """
        self._missing[slot] = samples
        self._replaced[slot] = []
        for first in range(0, samples, self._chunk):
            self._unsent.append(TASK.pack(slot, first, min(self._chunk, samples - first)))
        self._send()

    def wait(self, slot: int) -> list[Replacement]:
        """Wait until the workers have read a submitted slot, and return the samples that were replaced in it.

        Raises:
            DamagedSampleError: a sample differs from the index and may not be replaced.
            LoaderError: a worker failed or was killed.
        """
        while self._missing[slot]:
            self._send()
            poll = select.poll()
            poll.register(self._reports, select.POLLIN)
            if self._unsent:
                poll.register(self._tasks, select.POLLOUT)
            events = poll.poll(_CHECK_S * 1000)
            if any(descriptor == self._reports.fileno() for descriptor, _ in events):
                data = self._reports.recv(MAX_REPORT)
                if data:
                    self._collect(pickle.loads(data))
                    continue
            if not events or any(event & (select.POLLHUP | select.POLLERR) for _, event in events):
                self._check_workers()
        return self._replaced[slot]

    def close(self) -> None:
        """End the workers; chunks that they have not finished are lost."""
        self._tasks.close()
        self._reports.close()
        for worker in self._workers:
            end_helper(worker)
        if self._workers:
            os.close(self.slots.descriptor)
        self._workers = []

    def _send(self) -> None:
        """Send waiting chunks to the workers, as many as the socket takes without blocking."""
        try:
            while self._unsent:
                self._tasks.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._check_workers()

    def _collect(self, report: Report) -> None:
        """Count the samples of a report; raise its problem if it has one."""
        if report.problem == "damaged":
            raise DamagedSampleError(report.message)
        if report.problem == "failed":
            raise LoaderError(report.message)
        self._missing[report.slot] -= report.samples
        self._replaced[report.slot].extend(report.replaced)

    def _check_workers(self) -> None:
        """Raise `LoaderError` if a worker process has ended."""
        for worker, row in zip(self._workers, self.slots.reading.tolist(), strict=True):
            code = worker.poll()
            if code is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                hint = "; out of memory? Take fewer --train.data.workers" if code == -signal.SIGKILL else ""
                sample = "" if row < 0 else f"; it was reading {describe_sample(self._spec, row)}"
                if row >= 0 and code < 0 and code != -signal.SIGKILL:
                    hint = "; see which images end a decoder by python -m sharding.verify"
                raise LoaderError(f"loader worker {worker.pid} {how}{hint}{sample}")
