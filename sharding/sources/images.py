"""Read the encoded images of a listing, in any form of the source."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from sharding.errors import SourceError
from sharding.sources import parquet
from sharding.sources.listing import Listing
from sharding.sources.range_reader import RangeReader
from sharding.storage import Folder

# Concurrent requests to a remote store, where one request takes some ten milliseconds.
_REMOTE_REQUESTS = 16
_CHANGED = (
    "Restore it and give the same command again; or pack the source as it is now into another --output, while nothing "
    "changes it."
)
# Read from a local disk in one go, because decoding in between evicts everything else from the CPU caches.
_READ_AHEAD_BYTES = 4 << 20


def iter_images(root: Folder, samples: Listing) -> Iterator[tuple[int, bytes]]:
    """Read the encoded images of some samples, in order.

    Args:
        root: folder of the source.
        samples: the samples to read.

    Yields:
        The position in `samples`, and the bytes of the image.

    Raises:
        SourceError: a file is missing, cannot be read, or has another size than when it was listed.
    """
    if samples.source_format == "parquet":
        yield from parquet.iter_rows(root, samples)
        return
    with RangeReader(root) as reader:
        ranges = _ranges(samples)
        if root.is_local:
            yield from _iter_local(reader, samples, ranges)
            return
        with ThreadPoolExecutor(_REMOTE_REQUESTS) as pool:
            pending: deque[Future[bytes]] = deque()
            for index in range(len(samples) + _REMOTE_REQUESTS):
                if index < len(samples):
                    pending.append(pool.submit(_read, reader, samples, index, *ranges[index]))
                if index >= _REMOTE_REQUESTS:
                    yield index - _REMOTE_REQUESTS, pending.popleft().result()


def _ranges(samples: Listing) -> list[tuple[str, int, int]]:
    """File name, offset and size in bytes of every image."""
    files = samples.files.to_pylist()
    names = [files[number] for number in samples.file.tolist()]
    return list(zip(names, samples.offsets.tolist(), samples.sizes.tolist(), strict=True))


def _iter_local(
    reader: RangeReader, samples: Listing, ranges: list[tuple[str, int, int]]
) -> Iterator[tuple[int, bytes]]:
    ahead: list[tuple[int, bytes]] = []
    ahead_bytes = 0
    for index, place in enumerate(ranges):
        data = _read(reader, samples, index, *place)
        ahead.append((index, data))
        ahead_bytes += len(data)
        if ahead_bytes >= _READ_AHEAD_BYTES:
            yield from ahead
            ahead, ahead_bytes = [], 0
    yield from ahead


def _read(reader: RangeReader, samples: Listing, index: int, name: str, offset: int, size: int) -> bytes:
    try:
        data = reader.read(name, offset, size) if samples.in_archives else reader.read_file(name, size)
    except FileNotFoundError as error:
        raise SourceError(f"{samples.describe(index)} is gone since the source was listed. {_CHANGED}") from error
    except OSError as error:
        raise SourceError(f"{reader.root.location}/{name} cannot be read: {error}") from error
    if len(data) != size:
        raise SourceError(
            f"{samples.describe(index)} has {len(data):,} bytes, and had {size:,} when the source was listed: the "
            f"source has changed since. {_CHANGED}"
        )
    return data
