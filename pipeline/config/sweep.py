"""`--sweep FIELD=A,B`: the trainings of a sweep, one for each combination of values."""

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
    """One training of a sweep.

    Attributes:
        name: name of its folder, such as `lr=0.001,seed=0`.
        config: its configuration.
    """

    name: str
    config: TrainConfig


def build_members(sweep: Sequence[str], config: TrainConfig) -> list[Member]:
    """Return the trainings of a sweep.

    Args:
        sweep: values of the flag, each `train.FIELD=A,B,…`.
        config: configuration of all fields that are not swept.

    Raises:
        ConfigError: a field does not exist, a field cannot have a value, or one of them is given twice.
    """
    axes = [_axis(text, config) for text in sweep]
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
        name = ",".join(f"{field}={value}" for field, value in zip(short, values, strict=True))
        members.append(Member(name=re.sub(r"[^\w.+=,-]", "_", name), config=changed))
    names = [member.name for member in members]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--sweep: {name} would be trained twice")
    return members


def refuse_contradictions(sweep: Sequence[str], arguments: Sequence[str]) -> None:
    """Refuse a field that is swept and given as a flag too.

    Args:
        sweep: values of `--sweep`.
        arguments: all arguments of the command line.

    Raises:
        ConfigError: there is such a field.
    """
    flags = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for text in sweep:
        flag = f"--{PREFIX}{text.partition('=')[0].removeprefix(PREFIX)}".replace("_", "-")
        if flag in flags:
            raise ConfigError(f"{flag} is given as a flag and in --sweep {text}: leave one of them out")


def _axis(text: str, config: TrainConfig) -> tuple[str, list[Any]]:
    """Return the field (without `train.`) and the values of one `train.FIELD=A,B,…`."""
    name, equals, listed = text.partition("=")
    field = name.replace("-", "_").removeprefix(PREFIX)
    hints = dict(_fields(config))
    if field not in hints:
        near = difflib.get_close_matches(field, hints, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"sweep a field of the training, such as {PREFIX}seed"
        raise ConfigError(f"--sweep {text}: there is no field {name}; {hint}")
    if not equals or not all(listed.split(",")):
        raise ConfigError(f"--sweep {text}: write it as {PREFIX}{field}=A,B")
    try:
        values = [_value(item, hints[field]) for item in listed.split(",")]
    except ValueError as error:
        raise ConfigError(f"--sweep {text}: {error}") from None
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"--sweep {text}: {value} is given twice")
    return field, values


def _fields(config: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the dotted name and the type of every field of a config."""
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
    """Return `text` as a value of the type `hint`; the `ValueError` of another text says what is possible."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        for option in options:
            if str(option) == text:
                return option
        raise ValueError(f"{text} is not one of {', '.join(map(str, options))}")
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        reasons = []
        for option in options:
            if option is not type(None):
                try:
                    return _value(text, option)
                except ValueError as error:
                    reasons.append(str(error))
        raise ValueError(", and ".join(reasons))
    if hint is bool:
        return _value(text.lower(), typing.Literal["true", "false"]) == "true"
    if hint not in (int, float, str):
        raise ValueError("a field of several values cannot be swept")
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{text} is no {hint.__name__}") from None


def _with(config: Any, path: Sequence[str], value: Any) -> Any:
    """Return a copy of a config with the field at `path` changed."""
    if len(path) > 1:
        value = _with(getattr(config, path[0]), path[1:], value)
    return dataclasses.replace(config, **{path[0]: value})
