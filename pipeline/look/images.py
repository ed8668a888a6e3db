"""The images that are looked at: from files, folders and shards."""

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.augment.decode import EncodedImage, Pixels
from pipeline.common.errors import InputError, one_line
from sharding.sources.folder import EXTENSIONS


@dataclass(frozen=True)
class NamedImage:
    """A decoded image."""

    name: str
    """Name of the file, or of the member of the shard."""
    encoded: bytes
    """Content of the file."""
    pixels: Pixels
    """uint8 [H, W, 3], RGB."""


def choose_images(sources: Sequence[str], count: int) -> list[NamedImage]:
    """Read at most `count` images, spread evenly over all that the sources hold.

    Args:
        sources: image files, folders with images at any depth, or shards (`.tar`).
        count: greatest number of images.

    Raises:
        InputError: a source does not exist or has no image, or an image cannot be decoded.
    """
    if count < 1:
        raise InputError(f"--count {count}: look at one image at least")
    found = [image for source in sources for image in _list(Path(os.path.expanduser(source)))]
    step = max(1.0, len(found) / count)
    chosen = [found[int(number * step)] for number in range(min(count, len(found)))]
    return [_decode(name, read()) for name, read in chosen]


def _list(source: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """List a source's images in the order of their names: their names, and functions that read them."""
    if source.suffix == ".tar" and source.is_file():
        found = list(_list_tar(source))
    elif source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
        found = [(str(path.relative_to(source)), path.read_bytes) for path in paths]
    elif source.is_file():
        found = [(source.name, source.read_bytes)]
    else:
        raise InputError(f"--images {source} does not exist: give image files, folders with images, or shards (.tar)")
    if not found:
        raise InputError(f"--images {source} has no image ({', '.join(EXTENSIONS)})")
    yield from found


def _list_tar(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        with tarfile.open(path) as tar:
            members = [member for member in tar if Path(member.name).suffix.lower() in EXTENSIONS]
    except tarfile.TarError as error:
        raise InputError(f"--images {path} is no shard: {one_line(error)}") from error
    for member in sorted(members, key=lambda member: member.name):
        yield member.name, _reader(path, member.offset_data, member.size)


def _reader(path: Path, offset: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    return read


def _decode(name: str, encoded: bytes) -> NamedImage:
    try:
        return NamedImage(name, encoded, EncodedImage(encoded).pixels())
    except ValueError as error:
        raise InputError(f"--images: {name} {error}") from error
