"""Count the instructions that a warp executes, given a kernel's machine code as printed by `cuobjdump -sass`.

An instruction inside loops is counted as often as they run.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass, field

__all__ = ["Code", "executed", "executed_branches", "parse"]

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?(\S+)(.*?);")
# A warp group's matrix instruction has 64 rows, shared by four warps.
WARP_GROUP, WARP = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)"), re.compile(r"HMMA\.16816")
ENDS = ("BRA", "EXIT", "RET", "BRX", "JMP")


@dataclass(frozen=True)
class Code:
    """A kernel's instructions in order: address, predicate, name, operands."""

    lines: list[tuple[int, str, str, str]]
    loops: list[tuple[int, int]] = field(default_factory=list)
    """First and last address of each loop."""

    def within(self, first: int, last: int) -> list[tuple[int, str, str, str]]:
        """Return the instructions at addresses `first` to `last`."""
        return [line for line in self.lines if first <= line[0] <= last]

    def operations(self, first: int, last: int) -> float:
        """Return the matrix operations (a product and a sum are two) of a warp's pass over these addresses."""
        total = 0.0
        for _, _, name, _ in self.within(first, last):
            if group := WARP_GROUP.match(name):
                total += 2 * int(group[1]) * int(group[2]) * int(group[3]) / 4
            elif WARP.match(name):
                total += 2 * 16 * 8 * 16
        return total


def _target(name: str, rest: str) -> int | None:
    found = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
    return int(found[1], 16) if found else None


def parse(text: str) -> Code:
    """Parse the output of `cuobjdump -sass`."""
    lines = [(int(at, 16), predicate, name, rest) for at, predicate, name, rest in LINE.findall(text)]
    lines = [line for line in lines if not line[2].startswith("NOP")]
    loops = [(target, at) for at, _, name, rest in lines if (target := _target(name, rest)) is not None and target < at]
    return Code(lines, loops)


def executed(code: Code, trips: list[float]) -> float:
    """Return the instructions of a warp whose nested loops run `trips` times, the outermost first."""
    total = 0.0
    for at, _, _, _ in code.lines:
        weight = 1.0
        for trip in trips[: sum(first <= at <= last for first, last in code.loops)]:
            weight *= trip
        total += weight
    return total


def executed_branches(code: Code, trips: dict[float, float]) -> float:
    """Return the mean instructions of a warp, in a kernel with branches that are taken equally often.

    Each branch has one loop. `trips` maps the number of matrix operations in an iteration to how often that loop runs;
    loops are matched to it by the order of their operations. Code on the way to or from a branch's loop counts for that
    branch.
    """
    ranked = sorted(code.loops, key=lambda loop: code.operations(*loop))
    assert len(ranked) == len(trips), f"{len(ranked)} loops in place of {len(trips)}"
    flow = _Flow(code)
    total = 0.0
    for (first, last), (_, runs) in zip(ranked, sorted(trips.items()), strict=True):
        reached = flow.around(first)
        total += sum((runs if first <= at <= last else 1.0) for at, _, _, _ in code.lines if flow.block(at) in reached)
    return total / len(ranked)


class _Flow:
    """The control flow between blocks of straight-line code."""

    def __init__(self, code: Code) -> None:
        starts = {code.lines[0][0]}
        for (_, _, name, rest), after in zip(code.lines, code.lines[1:], strict=False):
            if name.startswith(ENDS):
                starts.add(after[0])
                if (target := _target(name, rest)) is not None:
                    starts.add(target)
        self.starts = sorted(starts)
        self.after: dict[int, set[int]] = {start: set() for start in self.starts}
        self.before: dict[int, set[int]] = {start: set() for start in self.starts}
        for index, (at, predicate, name, rest) in enumerate(code.lines):
            follows = code.lines[index + 1][0] if index + 1 < len(code.lines) else None
            if name.startswith("BRA") and (target := _target(name, rest)) is not None:
                self._link(at, target)
            stays = name.startswith(ENDS) and predicate in ("", "PT")
            if follows in self.after and not stays:
                self._link(at, follows)

    def _link(self, at: int, to: int) -> None:
        block = self.block(at)
        self.after[block].add(self.block(to))
        self.before[self.block(to)].add(block)

    def block(self, at: int) -> int:
        """Return the first address of the block that contains `at`."""
        return self.starts[bisect_right(self.starts, at) - 1]

    def around(self, at: int) -> set[int]:
        """Return the blocks from which the block of `at` can be reached, or that can be reached from it."""
        return self._reach(self.block(at), self.after) | self._reach(self.block(at), self.before)

    @staticmethod
    def _reach(start: int, links: dict[int, set[int]]) -> set[int]:
        found, waiting = {start}, [start]
        while waiting:
            new = links[waiting.pop()] - found
            found |= new
            waiting.extend(new)
        return found
