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
        name, option = given.replace("-", "_"), prefix + given.replace("_", "-")
        if name not in names:
            known = [f"{prefix}{n.replace('_', '-')}" for n in names]
            raise unknown_name("option", option, known or ["none"])
        chosen[name] = _coerce(value, hints[name], option)
    return kind(**chosen)


def _coerce(value: Any, hint: Any, option: str) -> Any:
    alternatives = _alternatives(hint)
    parsed = _parse(value)
    if parsed is None and types.NoneType in alternatives:
        return None
    for alternative in alternatives:
        try:
            return _fit(alternative, value, parsed)
        except ValueError:
            continue
    raise UsageError(f"{option} {value!r}: expected {_shown(hint)}")


def _parse(value: Any) -> Any:
    """Return what a string means as YAML, and any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _fit(kind: Any, given: Any, parsed: Any) -> Any:
    """Return the value as one plain type; ValueError when it is none of that type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        for choice in arguments:
            if any(type(choice) is type(v) and choice == v for v in (given, parsed)):
                return choice
    elif tuple in (kind, origin):
        if isinstance(parsed, (list, tuple)):
            repeated = not arguments or arguments[-1] is Ellipsis
            kinds = (arguments or (object,))[:1] * len(parsed) if repeated else arguments
            items = zip(kinds, parsed, strict=True)
            return tuple(_fit(item_kind, item, item) for item_kind, item in items)
    elif kind is str:
        if isinstance(given, str):
            return given
    elif kind is Path:
        if isinstance(given, str | Path):
            return Path(given)
    elif kind in (int, float) and isinstance(parsed, bool):
        pass  # which Python counts among the numbers
    elif kind is float:
        if isinstance(parsed, (int, float, str)):  # YAML reads "1e-3" as a string
            return float(parsed)
    elif isinstance(parsed, origin or kind):
        return parsed
    raise ValueError


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))
