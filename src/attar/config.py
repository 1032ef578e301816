"""Typed configuration: dataclasses to plain values and back, checked field by field."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from attar.errors import UsageError, unknown_name

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Return dataclasses, paths and tuples as dicts, strings and lists (what YAML can hold)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Sequence):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(value: Any) -> str:
    """Return a dataclass or mapping as YAML, fields in their order."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True)


def coerce_options(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """Build a dataclass from option values given as strings or plain values.

    Raises:
        UsageError: an unknown option (with the nearest names) or a value of the wrong type.
    """
    hints = typing.get_type_hints(kind)
    fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = {f.name for f in fields}
    chosen = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in names:
            known = [f"{prefix}{n.replace('_', '-')}" for n in names]
            raise unknown_name("option", f"{prefix}{given}", known or ["none"])
        chosen[name] = _coerce(value, hints[name], f"{prefix}{given}")
    return kind(**chosen)


def _coerce(value: Any, hint: Any, option: str) -> Any:
    parsed = yaml.safe_load(value) if isinstance(value, str) and hint is not str else value
    for alternative in _alternatives(hint):
        if typing.get_origin(alternative) is Literal:
            if value in typing.get_args(alternative):
                return value
        elif alternative is float and isinstance(parsed, (int, float, str)):
            try:  # YAML reads "1e-3" as a string
                return float(parsed)
            except ValueError:
                continue
        elif alternative is tuple or typing.get_origin(alternative) is tuple:
            if isinstance(parsed, (list, tuple)):
                return tuple(parsed)
        elif alternative is int and isinstance(parsed, bool):
            continue
        elif isinstance(parsed, alternative):
            return parsed
    raise UsageError(f"{option} {value!r}: expected {_shown(hint)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))
