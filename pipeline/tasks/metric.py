"""What an evaluation measures: the scores of a task, one of which is its primary metric.

The primary metric decides which checkpoint is kept, which weights are registered and which version is the champion.
Files and tags store it flat, as `metric`, `metric_value` and `higher_is_better`, beside each score by its own name.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

PREFIX = "eval_"
"""Beginning of the keys of `metrics.jsonl` that hold scores: `eval_top1` is `eval/top1` in MLflow."""
_BEFORE_TASKS = "top1"
"""Primary metric of what was stored before tasks had names: every run was a classification."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number that an evaluation gives."""

    name: str
    """Name in files and in MLflow, such as `top1`."""
    label: str
    """Name in texts and pictures, such as `top-1`."""
    higher_is_better: bool = True
    """Whether a greater value is the better one."""
    is_share: bool = True
    """Whether it is a share in [0, 1], which texts show in percent; a loss is none."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A value of a primary metric."""

    name: str
    """Name of the score, such as `top1`."""
    value: float
    """Its value, in [0, 1]."""
    higher_is_better: bool = True
    """Whether a greater value is the better one."""

    def beats(self, other: Self | None) -> bool:
        """Whether this value is better than another one of the same metric; any number is better than none."""
        if math.isnan(self.value):
            return False
        if other is None:
            return True
        if other.name != self.name:
            return False
        return self.value > other.value if self.higher_is_better else self.value < other.value

    def stored(self) -> dict[str, Any]:
        """Return the entries by which files and tags store the metric; `stored_metric` reads them."""
        return {"metric": self.name, "metric_value": self.value, "higher_is_better": self.higher_is_better}


def stored_metric(content: Mapping[str, Any]) -> Metric | None:
    """Return the metric that a manifest, a registered version or its tags hold; None if they hold none.

    What was stored before tasks had names is read as well.

    Raises:
        ValueError, TypeError: the value is no number.
    """
    if "metric" in content:
        name, value = content["metric"], content.get("metric_value")
        higher = str(content.get("higher_is_better", True)).lower() != "false"
    else:
        name, value, higher = _BEFORE_TASKS, content.get(_BEFORE_TASKS), True
    return None if name is None or value is None else Metric(name=name, value=float(value), higher_is_better=higher)


def was_evaluated(record: Mapping[str, Any]) -> bool:
    """Whether a record of `metrics.jsonl` holds an evaluation."""
    return any(key.startswith(PREFIX) for key in record)


@dataclass(frozen=True)
class Scores:
    """All scores of a task.

    Attributes:
        entries: the scores, the primary metric first.
        preferred: name of the score that is the primary metric of the networks for which it is measured; None: the
            first one is that of all.
    """

    entries: tuple[Score, ...]
    preferred: str | None = None

    def __iter__(self) -> Iterator[Score]:
        """Iterate over the scores."""
        return iter(self.entries)

    def primary(self, values: Mapping[str, float]) -> Score:
        """Return the primary metric of a network with these scores by name."""
        is_preferred = self.preferred is not None and values.get(self.preferred) is not None
        return next(score for score in self.entries if not is_preferred or score.name == self.preferred)

    @property
    def shares(self) -> tuple[Score, ...]:
        """The scores that are shares in [0, 1]."""
        return tuple(score for score in self.entries if score.is_share)

    def label(self, name: str) -> str:
        """Return the name of a score in texts."""
        return next(score.label for score in self.entries if score.name == name)

    def record(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return what a step's record gets of an evaluation: each score that was measured under its key."""
        return {f"{PREFIX}{score.name}": values[score.name] for score in self.entries if score.name in values}

    def of_record(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the scores that a record of `metrics.jsonl` holds, by name; empty if it was not evaluated."""
        keys = {score.name: f"{PREFIX}{score.name}" for score in self.entries}
        return {name: record[key] for name, key in keys.items() if record.get(key) is not None}

    def metric(self, values: Mapping[str, float]) -> Metric | None:
        """Return the primary metric among scores by name; None if it is not among them."""
        primary = self.primary(values)
        if values.get(primary.name) is None:
            return None
        return Metric(name=primary.name, value=values[primary.name], higher_is_better=primary.higher_is_better)

    def metric_of_record(self, record: Mapping[str, Any]) -> Metric | None:
        """Return the primary metric of a record of `metrics.jsonl`; None if it was not evaluated."""
        return self.metric(self.of_record(record))

    def describe(self, values: Mapping[str, float]) -> str:
        """Return the shares among scores by name in words, such as `top-1 0.9694, top-5 0.9972`."""
        return ", ".join(f"{score.label} {values[score.name]:.4f}" for score in self.shares if score.name in values)
