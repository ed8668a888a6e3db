"""How a task's models are registered: what they are called, answer and are compared by. No torch, no MLflow."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Maybe:
    """A field that an object may lack."""

    of: "Column"


Column = str | tuple["Column"] | Mapping[str, "Column | Maybe"]
"""Type of a column: `string`, `double` or `long`; a tuple of one type is a list, and a mapping an object by fields."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a registered model of a task is.

    Attributes:
        kind: what it is, in texts, such as `an image classifier`.
        kinds: what several are, such as `image classifiers`.
        model_type: type in MLflow.
        program: file that MLflow executes to load it.
        code: more files and folders that travel with it, beside the packages of every model.
        packages: more packages that it needs.
        columns: columns of its answer, by name.
        compared: column that is compared with the truth before the model is registered.
        score: score of the card that the share of right answers is compared with.
        agreement: share of a truth that an answer in that column has right, in [0, 1].
        describe_input: the preparation of an image in words, given the card's `image_size` and `preprocessing`.
        input_multiple: number whose multiples the sides of an exported network's input may be; None: `image_size`
            alone.
        input_from: the smallest of these multiples: no map of the network may have a single pixel.
        has_builder: whether `transxnet.NAME(pretrained=…)` builds the network.
    """

    kind: str
    kinds: str
    model_type: str
    program: Path
    columns: Mapping[str, Column]
    compared: str
    score: str
    agreement: Callable[[Any, Any], float]
    describe_input: Callable[[int, Any], str]
    code: tuple[Path, ...] = ()
    packages: tuple[str, ...] = ()
    input_multiple: int | None = None
    input_from: int = 2
    has_builder: bool = True

    @property
    def answer(self) -> str:
        """Columns of the answer, for texts."""
        return ", ".join(self.columns)
