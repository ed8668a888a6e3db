"""A small encoder of baseline JPEGs (ITU-T T.81) that takes any Huffman tables, and random tables and blocks for it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLINGS = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2), "4:4:0": (1, 2)}
"""Horizontal and vertical sampling factors of the luma; those of the chroma are 1."""
ALL_AC_SYMBOLS = [0x00, 0xF0] + [run << 4 | size for run in range(16) for size in range(1, 11)]
_LONGEST_CODE = 16
_STEP = 8
"""All elements of the quantisation table."""
_BUDGET = 1200
"""Greatest sum of a block's AC coefficients: libjpeg-turbo's decoders differ where values leave the range by far."""


@dataclass(frozen=True)
class HuffmanTable:
    """The number of codes of each length from 1 to 16, and the symbols in the order of their codes."""

    counts: tuple[int, ...]
    symbols: tuple[int, ...]

    def codes(self) -> dict[int, tuple[int, int]]:
        """Code and length of each symbol (T.81, annex C)."""
        codes, code, symbols = {}, 0, iter(self.symbols)
        for length, count in enumerate(self.counts, start=1):
            for _ in range(count):
                codes[next(symbols)] = (code, length)
                code += 1
            code <<= 1
        return codes


def random_table(chance: random.Random, symbols: Sequence[int]) -> HuffmanTable:
    """Draw a table: balanced or skewed, with any symbols in the short codes, with or without unused codes."""
    unused = chance.choice([1, 1, 2, 5])  # one at least: no code may consist of ones alone
    order: list[int | None] = [*symbols, *[None] * unused]
    chance.shuffle(order)
    if chance.random() < 0.5:  # 16 zeros or the end of the block get the shortest code
        favourite = chance.choice([0xF0, 0x00, order[0]])
        order.sort(key=lambda symbol: symbol is None or symbol != favourite)
    lengths: list[tuple[int, int | None]] = []
    _split(chance, order, 0, chance.choice([0.03, 0.2, 0.5]), lengths)
    lengths.sort(key=lambda pair: (pair[0], pair[1] is None))
    longest = lengths[-1][0]
    if lengths[-1][1] is not None:  # the last code is the one of ones: an unused one takes it
        place = next(i for i, pair in enumerate(lengths) if pair[1] is None)
        lengths[-1], lengths[place] = (longest, None), (lengths[place][0], lengths[-1][1])
    used = [(length, symbol) for length, symbol in lengths if symbol is not None]
    counts = [sum(length == n for length, _ in used) for n in range(1, _LONGEST_CODE + 1)]
    return HuffmanTable(tuple(counts), tuple(symbol for _, symbol in used))


def _split(
    chance: random.Random, symbols: list[int | None], depth: int, share: float, lengths: list[tuple[int, int | None]]
) -> None:
    """Append the (length, symbol) of each leaf of a random binary tree, in which one side gets about `share`."""
    if len(symbols) == 1:
        lengths.append((max(depth, 1), symbols[0]))
        return
    room = 1 << (_LONGEST_CODE - depth - 1)
    first = round(chance.gauss(share, 0.1) * len(symbols))
    first = max(1, len(symbols) - room, min(first, len(symbols) - 1, room))
    _split(chance, symbols[:first], depth + 1, share, lengths)
    _split(chance, symbols[first:], depth + 1, share, lengths)


class _BitWriter:
    def __init__(self) -> None:
        self.bits: list[str] = []

    def put(self, value: int, count: int) -> None:
        if count:
            self.bits.append(format(value, f"0{count}b"))

    def take(self) -> bytes:
        """Return the bits so far as coded data: padded with ones, with a zero byte stuffed behind each 0xFF."""
        text = "".join(self.bits)
        self.bits = []
        text += "1" * (-len(text) % 8)
        return int("1" + text, 2).to_bytes(len(text) // 8 + 1, "big")[1:].replace(b"\xff", b"\xff\x00")


def random_jpeg(chance: random.Random, sampling: str, height: int, width: int) -> bytes:
    """Draw a valid baseline JPEG: blocks with few or many coefficients, Huffman tables, restart interval."""
    across, down = SAMPLINGS[sampling]
    factors = [(across, down), (1, 1), (1, 1)]
    columns, rows = -(-width // (8 * across)), -(-height // (8 * down))
    draw_block = _block_kind(chance)
    units = [
        [(component, draw_block()) for component, (x, y) in enumerate(factors) for _ in range(x * y)]
        for _ in range(rows * columns)
    ]
    restart = chance.choice([0, 0, 1, 2, 5, columns])
    scan = (
        [_symbols(units[at : at + restart]) for at in range(0, len(units), restart)] if restart else [_symbols(units)]
    )
    tables = chance.choice([1, 2])  # luma and chroma share the tables, or not
    used: dict[tuple[int, int], set[int]] = {(kind, slot): set() for kind in (0, 1) for slot in range(tables)}
    for kind, component, symbol, _, _ in (item for interval in scan for item in interval):
        used[kind, min(component, tables - 1)].add(symbol)
    codes, segments = {}, b""
    for (kind, slot), symbols in used.items():
        if chance.random() < 0.5:
            symbols |= set(range(12) if kind == 0 else ALL_AC_SYMBOLS)
        table = random_table(chance, sorted(symbols))
        codes[kind, slot] = table.codes()
        segments += _segment(0xC4, bytes([kind << 4 | slot, *table.counts, *table.symbols]))
    parts = []
    for number, interval in enumerate(scan):
        writer = _BitWriter()
        for kind, component, symbol, value, bits in interval:
            writer.put(*codes[kind, min(component, tables - 1)][symbol])
            writer.put(value, bits)
        parts.append((bytes([0xFF, 0xD0 + (number - 1) % 8]) if number else b"") + writer.take())
    frame = [
        8,
        *height.to_bytes(2, "big"),
        *width.to_bytes(2, "big"),
        3,
        1,
        across << 4 | down,
        0,
        2,
        0x11,
        0,
        3,
        0x11,
        0,
    ]
    slots = [0x11 * min(component, tables - 1) for component in range(3)]
    return b"".join(
        [
            b"\xff\xd8",
            _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            _segment(0xDB, bytes([0, *[_STEP] * 64])),
            _segment(0xC0, bytes(frame)),
            segments,
            _segment(0xDD, restart.to_bytes(2, "big")) if restart else b"",
            _segment(0xDA, bytes([3, 1, slots[0], 2, slots[1], 3, slots[2], 0, 63, 0])),
            *parts,
            b"\xff\xd9",
        ]
    )


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _block_kind(chance: random.Random):
    """Return a function that draws blocks of one kind: int [64], in zigzag order and before dequantisation."""
    often = chance.choice([0.0, 0.02, 0.1, 0.4, 1.0])
    largest = chance.choice([1, 3, 30, 140])
    places = chance.choice([range(1, 64), [15, 63], [63], [16, 17, 33, 62, 63], range(1, 6), [31, 47, 48, 63]])
    flat = chance.choice([0.0, 0.3, 0.9])

    def draw() -> list[int]:
        block = [chance.randint(-100, 100) if chance.random() < 0.5 else 0] + [0] * 63
        if chance.random() < flat:
            return block
        for place in places:
            if len(places) < 6 or chance.random() < often:
                block[place] = chance.choice([-1, 1]) * chance.randint(1, largest)
        total = sum(abs(value) for value in block[1:]) * _STEP
        if total > _BUDGET:
            block[1:] = [int(value * _BUDGET / total) for value in block[1:]]
        return block

    return draw


def _symbols(units: list[list[tuple[int, list[int]]]]) -> list[tuple[int, int, int, int, int]]:
    """Code the MCUs of a restart interval: (0 for DC or 1 for AC, component, symbol, value bits, their number)."""
    coded, before = [], [0, 0, 0]
    for unit in units:
        for component, block in unit:
            difference = block[0] - before[component]
            before[component] = block[0]
            size = abs(difference).bit_length()
            coded.append((0, component, size, _value_bits(difference, size), size))
            run = 0
            last = max((place for place in range(1, 64) if block[place]), default=0)
            for value in block[1 : last + 1]:
                if value == 0:
                    run += 1
                    continue
                coded.extend([(1, component, 0xF0, 0, 0)] * (run // 16))
                size = abs(value).bit_length()
                coded.append((1, component, (run % 16) << 4 | size, _value_bits(value, size), size))
                run = 0
            if last < 63:
                coded.append((1, component, 0x00, 0, 0))
    return coded


def _value_bits(value: int, size: int) -> int:
    return value if value >= 0 else value + (1 << size) - 1


def random_boxes(chance: random.Random, height: int, width: int, count: int) -> np.ndarray:
    """The whole, and rectangles of all sizes: int [count + 1, 4] of top, left, height, width."""
    boxes = [(0, 0, height, width)]
    for _ in range(count):
        top, left = chance.randrange(height), chance.randrange(width)
        limits = chance.choice([8, 70])
        rows, columns = min(limits, height - top), min(limits, width - left)
        boxes.append((top, left, chance.randint(1, rows), chance.randint(1, columns)))
    return np.array(boxes)
