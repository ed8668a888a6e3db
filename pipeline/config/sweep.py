"""`--sweep FIELD=A,B`: the trainings that a sweep consists of, and the folder that holds them."""

import dataclasses
import difflib
import itertools
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import ConfigError, TrainConfig

PREFIX = "train."


@dataclass(frozen=True, kw_only=True)
class Member:
    """One training of a sweep: the name of its folder, and its configuration."""

    name: str
    config: TrainConfig


def build_members(sweep: Sequence[str], config: TrainConfig) -> list[Member]:
    """A training for each combination of values.

    Args:
        sweep: each `train.FIELD=A,B,…`, in the words of the flags.
        config: what all of them share.

    Raises:
        ConfigError: a field that does not exist or is there twice, a value that it cannot have or that is there twice.
    """
    axes = [_axis(words, config) for words in sweep]
    fields = [field for field, _ in axes]
    for field in fields:
        if fields.count(field) > 1:
            raise ConfigError(f"--sweep {PREFIX}{field} is given twice: put all its values into one list")
    leaves = [field.rpartition(".")[2] for field in fields]
    short = leaves if len(set(leaves)) == len(leaves) else fields
    members = []
    for values in itertools.product(*(values for _, values in axes)):
        changed = config
        for field, value in zip(fields, values, strict=True):
            changed = _with(changed, field.split("."), value)
        words = ",".join(f"{field}={value}" for field, value in zip(short, values, strict=True))
        members.append(Member(name=re.sub(r"[^\w.+=,-]", "_", words), config=changed))
    names = [member.name for member in members]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--sweep: {name} would be trained twice")
    return members


def refuse_contradictions(sweep: Sequence[str], arguments: Sequence[str]) -> None:
    """Refuse a field that is swept and given as a flag too.

    Raises:
        ConfigError: in one line.
    """
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for words in sweep:
        flag = f"--{PREFIX}{words.partition('=')[0].removeprefix(PREFIX)}".replace("_", "-")
        if flag in flags:
            raise ConfigError(f"{flag} is given as a flag and in --sweep {words}: leave one of them out")


def _axis(words: str, config: TrainConfig) -> tuple[str, list[Any]]:
    """A field below `train.` and its values."""
    name, equals, listed = words.partition("=")
    field = name.replace("-", "_").removeprefix(PREFIX)
    hints = dict(_fields(config))
    if field not in hints:
        near = difflib.get_close_matches(field, hints, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"sweep a field of the training, such as {PREFIX}seed"
        raise ConfigError(f"--sweep {words}: there is no field {name}; {hint}")
    if not equals or not all(listed.split(",")):
        raise ConfigError(f"--sweep {words}: write it as {PREFIX}{field}=A,B")
    try:
        values = [_value(text, hints[field]) for text in listed.split(",")]
    except ValueError as error:
        raise ConfigError(f"--sweep {words}: {error}") from None
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"--sweep {words}: {value} is there twice")
    return field, values


def _fields(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Name and type of every field of a config and of those in it."""
    hints = typing.get_type_hints(type(config))
    found: list[tuple[str, Any]] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += _fields(value, f"{prefix}{field.name}.")
        else:
            found.append((f"{prefix}{field.name}", hints[field.name]))
    return found


def _value(text: str, hint: Any) -> Any:
    """`text` as a value of a type; `ValueError` says what would be one."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        for option in options:
            if str(option) == text:
                return option
        raise ValueError(f"{text} is not one of {', '.join(map(str, options))}")
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        (hint,) = (option for option in options if option is not type(None))
        return _value(text, hint)
    if hint is bool:
        return _value(text.lower(), typing.Literal["true", "false"]) == "true"
    if hint not in (int, float, str):
        raise ValueError("a field of several values cannot be swept")
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{text} is no {hint.__name__}") from None


def _with(config: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of a config with the field at `path` changed."""
    if len(path) > 1:
        value = _with(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: value})
