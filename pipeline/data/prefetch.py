"""Download or stage shards before they are needed: each rank has a prefetch process and tells it what comes next."""

import logging
import os
import pickle
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipeline.common.processes import become_helper, end_helper, start_helper
from pipeline.data.cache import CacheError, RemoteShards, ShardCache

logger = logging.getLogger(__name__)
_THREADS = 4
"""Shards that a prefetch process downloads at the same time."""
_MAX_NAME = 4096
"""Greatest number of bytes of a shard's name."""


class Prefetcher:
    """The rank's side of its prefetch process: requests shards in the order of their need, within a budget of bytes."""

    def __init__(self, remote: RemoteShards, plan: Iterator[tuple[int, str]], budget: int) -> None:
        """Start the prefetch process.

        Args:
            remote: the shards and the cache.
            plan: (position in the sample order at which it is needed, name) of each shard, in order of the positions.
            budget: greatest number of bytes of shards that are downloaded before they are needed.
        """
        self._sizes, self._plan, self._budget = remote.sizes, plan, budget
        self._next = next(plan, None)
        self._ahead: deque[tuple[int, int]] = deque()
        self._ahead_bytes = 0
        self._unsent: deque[str] = deque()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        spec = os.memfd_create("prefetch-spec")
        os.write(spec, pickle.dumps(remote))
        try:
            descriptors = (spec, theirs.fileno())
            self._process = start_helper(__name__, [str(fd) for fd in descriptors], descriptors)
        finally:
            os.close(spec)
            theirs.close()

    def advance(self, position: int) -> None:
        """Request the shards that come next, when all samples before `position` are being read; return at once."""
        while self._ahead and self._ahead[0][0] < position:
            self._ahead_bytes -= self._ahead.popleft()[1]
        while self._next is not None:
            needed, name = self._next
            size = self._sizes[name]
            if needed >= position:
                if self._ahead_bytes + size > self._budget:
                    break
                self._ahead.append((needed, size))
                self._ahead_bytes += size
            self._unsent.append(name)
            self._next = next(self._plan, None)
        try:
            while self._unsent:
                self._socket.send(self._unsent[0].encode())
                self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # the prefetch process is gone: the readers download the shards themselves

    def close(self) -> None:
        """End the prefetch process."""
        self._socket.close()
        end_helper(self._process, within_s=0.5)


def main() -> None:
    """Run the prefetch process: download the requested shards until the rank closes the socket or dies."""
    spec_fd, socket_fd = (int(text) for text in become_helper())
    remote: RemoteShards = pickle.loads(os.pread(spec_fd, os.fstat(spec_fd).st_size, 0))
    cache = ShardCache(remote)

    def fetch(name: str) -> None:
        try:
            cache.fetch(name)
        except (CacheError, OSError) as error:  # the reader that needs the shard tries again, and raises the error
            logger.warning(
                "prefetch process %d: shard %s was not fetched ahead of need; its reader will try again: %s",
                os.getpid(),
                name,
                error,
            )

    with socket.socket(fileno=socket_fd) as requests:
        pool = ThreadPoolExecutor(_THREADS)
        while name := requests.recv(_MAX_NAME):
            pool.submit(fetch, name.decode())
    os._exit(0)  # do not wait for running downloads: any process may remove their part files once the locks are free
