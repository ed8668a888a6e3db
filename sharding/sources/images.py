"""The encoded images of a listing, whatever holds them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from sharding.errors import SourceError
from sharding.sources import parquet
from sharding.sources.listing import Listing
from sharding.sources.reading import RangeReader
from sharding.storage import Folder

# Images asked for at once from a remote store, where one request takes some ten milliseconds.
_REMOTE_REQUESTS = 16


def iter_images(root: Folder, samples: Listing) -> Iterator[tuple[int, bytes]]:
    """The encoded images of some samples, in their order, with their position.

    Args:
        root: of the source.
        samples: what to read.

    Raises:
        SourceError: a file is gone, cannot be read, or is shorter than when it was listed.
    """
    if samples.source_format == "parquet":
        yield from parquet.iter_rows(root, samples)
        return
    with RangeReader(root) as reader:
        if root.is_local:
            for index in range(len(samples)):
                yield index, _read(reader, samples, index)
            return
        with ThreadPoolExecutor(_REMOTE_REQUESTS) as pool:
            asked: deque[Future[bytes]] = deque()
            for index in range(len(samples) + _REMOTE_REQUESTS):
                if index < len(samples):
                    asked.append(pool.submit(_read, reader, samples, index))
                if index >= _REMOTE_REQUESTS:
                    yield index - _REMOTE_REQUESTS, asked.popleft().result()


def _read(reader: RangeReader, samples: Listing, index: int) -> bytes:
    name, size = samples.files[int(samples.file[index])].as_py(), int(samples.sizes[index])
    try:
        data = (
            reader.read(name, int(samples.offsets[index]), size)
            if samples.in_archives
            else reader.read_file(name, size)
        )
    except OSError as error:
        raise SourceError(f"{reader.root.location}/{name} cannot be read: {error}") from error
    if len(data) != size:
        raise SourceError(
            f"{samples.describe(index)} has {len(data):,} bytes, and had {size:,} when the source was listed: the "
            "source was changed meanwhile. Give the command again."
        )
    return data
