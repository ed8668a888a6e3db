"""Read the header of a JPEG from its bytes, so that no C decoder sees a file of a kind that it handles wrongly.

libjpeg-turbo, for example, does not reduce lossless JPEGs: asked for an eighth of the size, it writes the full size
into the smaller buffer. The walk over the segments is libjpeg's (`next_marker` and `read_markers` in `jdmarker.c`), so
that both find the same frame. The module needs only the standard library.
"""

from __future__ import annotations

from typing import NamedTuple

# ImageNet's largest image has 61 million pixels. The limit bounds the memory of one decode to about 400 MB.
MAX_PIXELS = 1 << 26
# libjpeg's JPEG_MAX_DIMENSION.
MAX_SIDE = 65_500
JPEG_START = b"\xff\xd8\xff"

_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_KINDS = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical progressive",
    0xC7: "hierarchical lossless",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded progressive",
    0xCB: "arithmetic-coded lossless",
    0xCD: "arithmetic-coded hierarchical",
    0xCE: "arithmetic-coded hierarchical progressive",
    0xCF: "arithmetic-coded hierarchical lossless",
}
_USUAL_KINDS = ("baseline", "extended", "progressive")
_USUAL_COMPONENTS = (1, 3, 4)
# TEM and the restart marks, which have no length.
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
# The frames and the scan; DHT, DAC, DQT, DNL, DRI, APP0 to APP15 and COM.
_WITH_LENGTH = frozenset({*_KINDS, _START_OF_SCAN, 0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE})
# Of a component: horizontal factor from 1 to 4 in the upper four bits, vertical one in the lower four.
_SAMPLING_FACTORS = frozenset(horizontal << 4 | vertical for horizontal in range(1, 5) for vertical in range(1, 5))
_MOST_IN_SCAN = 4


class JpegHeaderError(ValueError):
    """The bytes do not begin with the header of a JPEG that libjpeg could decode."""


class Segment(NamedTuple):
    """A segment of a JPEG's header.

    Attributes:
        marker: second byte of its marker.
        start: position of the marker.
        end: position after the segment's last byte.
    """

    marker: int
    start: int
    end: int


class JpegHeader(NamedTuple):
    """The frame of a JPEG.

    Attributes:
        kind: `baseline`, `extended`, `progressive`, `lossless`, …
        precision: bits of a sample.
        width: width in pixels.
        height: height in pixels.
        sampling: horizontal and vertical sampling factor of each component.
        frame: segment of the frame.
        segments: the segments up to the header of the first scan, including that one.
    """

    kind: str
    precision: int
    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]
    frame: Segment
    segments: tuple[Segment, ...]

    @property
    def oddity(self) -> str | None:
        """What makes the JPEG unfit for a fast decoder, such as `lossless JPEG`; None for an ordinary JPEG.

        An ordinary JPEG is baseline, extended or progressive, of 8 bits, with 1, 3 or 4 components.
        """
        if self.kind not in _USUAL_KINDS:
            return f"{self.kind} JPEG"
        if self.precision != 8:
            return f"{self.precision}-bit JPEG"
        if len(self.sampling) not in _USUAL_COMPONENTS:
            return f"JPEG of {len(self.sampling)} components"
        return None


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Read the header of a JPEG up to its first scan.

    Raises:
        JpegHeaderError: the bytes are no JPEG, a segment is damaged or ends after the file, there is no frame or more
            than one, or the frame has no pixels, more than `MAX_PIXELS` or a side longer than `MAX_SIDE`.
    """
    segments, frames = _read_segments(data)
    if not frames:
        raise JpegHeaderError("the JPEG has a scan but no frame before it")
    if len(frames) > 1:
        raise JpegHeaderError(f"the JPEG has a second frame at byte {frames[1].start:,}")
    frame = frames[0]
    precision, width, height, sampling = _read_frame(data[frame.start + 4 : frame.end], frame.start)
    _check_scan(data[segments[-1].start + 4 : segments[-1].end])
    return JpegHeader(_KINDS[frame.marker], precision, width, height, sampling, frame, tuple(segments))


def _read_segments(data: bytes) -> tuple[list[Segment], list[Segment]]:
    """List the segments up to the header of the first scan, including that one, and the frames among them.

    Like libjpeg, skip bytes that belong to no segment, and fill bytes.

    Raises:
        JpegHeaderError: the bytes are no JPEG, or a segment is of no known kind or ends after the file.
    """
    if data[:2] != JPEG_START[:2]:
        raise JpegHeaderError("the bytes are no JPEG: they do not begin with FF D8")
    segments, frames, position, size = [], [], 2, len(data)
    while True:
        # The usual case without a call: a segment follows the one before it at once.
        if position + 4 > size or data[position] != 0xFF or data[position + 1] not in _WITH_LENGTH:
            position = _find_segment(data, position)
        marker, length = data[position + 1], data[position + 2] << 8 | data[position + 3]
        end = position + 2 + length
        if end > size:
            raise JpegHeaderError(_ends_inside(size, marker, position))
        if length < 2:
            raise JpegHeaderError(f"the segment FF {marker:02X} at byte {position:,} of the JPEG has {length} bytes")
        segments.append(segment := Segment(marker, position, end))
        if marker in _KINDS:
            frames.append(segment)
        elif marker == _START_OF_SCAN:
            return segments, frames
        position = end


def _find_segment(data: bytes, position: int) -> int:
    """Find the next segment behind bytes that belong to none, and fill bytes; return the position of its marker.

    Raises:
        JpegHeaderError: there is none, or one of no known kind.
    """
    size = len(data)
    while True:
        position = data.find(b"\xff", position)
        while 0 <= position < size - 1 and data[position + 1] == 0xFF:
            position += 1
        if not 0 <= position < size - 1:
            raise JpegHeaderError(f"the JPEG ends after {size:,} bytes, in its header")
        marker = data[position + 1]
        if marker in _WITH_LENGTH:
            if position + 4 > size:
                raise JpegHeaderError(_ends_inside(size, marker, position))
            return position
        if marker in (_START_OF_IMAGE, _END_OF_IMAGE):
            raise JpegHeaderError(f"the JPEG has the marker FF {marker:02X} in its header, at byte {position:,}")
        if marker != 0 and marker not in _WITHOUT_LENGTH:
            raise JpegHeaderError(f"the JPEG has the unknown marker FF {marker:02X} at byte {position:,}")
        position += 2


def _ends_inside(size: int, marker: int, position: int) -> str:
    return f"the JPEG ends after {size:,} bytes, inside the segment FF {marker:02X} at byte {position:,}"


def _read_frame(content: bytes, start: int) -> tuple[int, int, int, tuple[tuple[int, int], ...]]:
    """Read precision, width, height and the sampling factors from the content of a frame's segment.

    Args:
        content: the segment without marker and length.
        start: position of the segment, for messages.

    Raises:
        JpegHeaderError: the frame is damaged, or has no pixels or too many.
    """
    if len(content) < 6 or not content[5] or len(content) != 6 + 3 * content[5]:
        raise JpegHeaderError(f"the frame of the JPEG at byte {start:,} has a wrong length")
    height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
    if not width or not height:
        raise JpegHeaderError(f"the JPEG has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise JpegHeaderError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed")
    if max(width, height) > MAX_SIDE:
        raise JpegHeaderError(f"{width} x {height} pixels: a side is longer than the {MAX_SIDE:,} pixels of libjpeg")
    sampling = tuple([(factors >> 4, factors & 15) for factors in content[7::3]])
    if not _SAMPLING_FACTORS.issuperset(content[7::3]):
        raise JpegHeaderError(f"the JPEG has the sampling factors {sampling}; each must be from 1 to 4")
    return content[0], width, height, sampling


def _check_scan(content: bytes) -> None:
    """Check the length of a scan's header.

    Raises:
        JpegHeaderError: the length contradicts the number of components.
    """
    if not content or not 1 <= content[0] <= _MOST_IN_SCAN or len(content) != 4 + 2 * content[0]:
        raise JpegHeaderError("the header of the JPEG's first scan has a wrong length")
