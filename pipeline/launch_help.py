"""How `--help` shows flags that may be left out: `STR` instead of `{None}|STR`, and no default that the words say."""

import dataclasses
import types
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo


def registry() -> ConstructorRegistry:
    """What `tyro.cli` takes as `registry`; values, `None` among them, are read as before."""
    made = ConstructorRegistry()
    inside = False

    @made.struct_rule
    def with_short_words(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or not dataclasses.is_dataclass(info.type):
            return None
        inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(_shortened(field) for field in spec.fields))

    return made


def _shortened(field: StructFieldSpec) -> StructFieldSpec:
    kinds = [kind for kind in get_args(field.type) if kind not in (types.NoneType, ...)]
    many = get_origin(field.type) is tuple and field.default == ()
    if not many and (get_origin(field.type) is not types.UnionType or len(kinds) != 1):
        return field

    def hint(default: str) -> str:
        words = field.helptext() if callable(field.helptext) else field.helptext
        said = not default or (default == "None" and "by default" in (words or ""))
        return "" if said else f"(default: {default})"

    metavar = None if many else kinds[0].__name__.upper()
    kind: Any = Annotated[field.type, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]
    return dataclasses.replace(field, type=kind)
