"""Which ranks of a run were slow or hung, from the events of its attempts."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["slow", "hangs"]
_KINDS: dict[str, Kind] = {"slow_rank": "slow", "hang": "hangs"}
_ENDS: dict[str, Kind] = {"well_rank": "slow", "hang_over": "hangs"}
"""Events that find a rank, and that end what was found."""


@dataclass(frozen=True, kw_only=True)
class RankTrouble:
    """A rank that was slow, or hung."""

    kind: Kind
    rank: int
    host: str
    since: int
    """Step at which it was found."""
    until: int | None
    """Step at which it was found to be well again; None: it was not, in the attempt that found it."""
    attempt: int
    what: str
    """The part of its work that is slow, and by how much, or where it hangs."""

    def describe(self) -> str:
        """Describe it in a few words: `rank 3 on n2 slow in computing (3.1 times the others), from step 250 on`."""
        end = "on" if self.until is None else f"to {self.until:,}"
        return f"rank {self.rank} on {self.host} {self.kind} {self.what}, from step {self.since:,} {end}"


def rank_troubles(events: Iterable[dict[str, Any]]) -> list[RankTrouble]:
    """Return the ranks that were slow or hung, in the order in which they were found."""
    found: list[RankTrouble] = []
    for event in events:
        kind, rank, step = event.get("event"), event.get("rank"), event.get("step")
        attempt = int(event.get("attempt", 1))
        if not isinstance(step, int):
            continue
        if kind in _ENDS:
            # All ranks go on together after a hang, so its end names none.
            found = [
                replace(each, until=step)
                if (each.kind, each.attempt, each.until) == (_ENDS[kind], attempt, None) and rank in (None, each.rank)
                else each
                for each in found
            ]
        elif kind in _KINDS and isinstance(rank, int):
            found.append(
                RankTrouble(
                    kind=_KINDS[kind],
                    rank=rank,
                    host=str(event.get("host", "an unknown host")),
                    since=step,
                    until=None,
                    attempt=attempt,
                    what=_slowness(event) if kind == "slow_rank" else f"({event.get('place', 'place unknown')})",
                )
            )
    return found


def present_troubles(troubles: Iterable[RankTrouble], attempt: int) -> list[RankTrouble]:
    """Return those that an attempt has found and that are not over."""
    return [trouble for trouble in troubles if trouble.attempt == attempt and trouble.until is None]


def describe_troubles(troubles: Iterable[RankTrouble]) -> str:
    """Describe several in one line; empty without any."""
    return "; ".join(trouble.describe() for trouble in troubles)


def _slowness(event: dict[str, Any]) -> str:
    part = "waiting for data" if event.get("part") == "data" else "computing"
    ratio = event.get("ratio")
    return f"in {part}" + (f" ({ratio:.1f} times the others)" if isinstance(ratio, int | float) else "")
