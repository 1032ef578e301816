"""Class lists: the names (and descriptions) that a picture is compared with."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attar.errors import UsageError


@dataclass(frozen=True)
class ClassList:
    """C classes in the user's order."""

    names: tuple[str, ...]
    """[C] as written by the user."""
    descriptions: tuple[tuple[str, ...], ...]
    """[C] the descriptions of each class, possibly none."""


def normalise_name(name: str) -> str:
    """Return the form in which names are compared: "Golden_Retriever" = "golden retriever"."""
    return " ".join(name.replace("_", " ").casefold().split())


def read_class_list(path: Path) -> ClassList:
    """Read a class list: a text file with one class a line, or JSON `{class: [descriptions]}`.

    Blank lines are skipped; a description may be one string or a list of strings; a JSON list of
    names is a list without descriptions.

    Raises:
        UsageError: the file is missing or unreadable, is empty, holds one class only, or two of
            its names are the same up to case, "_" and spaces.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"class list {path} cannot be read: {error.strerror or error}; give a text file with "
            "one class a line or JSON {class: [descriptions]}"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"class list {path} is not UTF-8 text; save it as UTF-8") from error
    pairs = _parse_json(path, text) if path.suffix.lower() == ".json" else _parse_lines(path, text)
    names = tuple(name for name, _ in pairs)
    _check_names(path, names)
    return ClassList(names, tuple(descriptions for _, descriptions in pairs))


def make_class_list(names: Sequence[str]) -> ClassList:
    """Return a class list of bare names, without descriptions; the same names are refused."""
    _check_names("class list", tuple(names))
    return ClassList(tuple(names), ((),) * len(names))


_Pairs = list[tuple[str, tuple[str, ...]]]


def _parse_lines(path: Path, text: str) -> _Pairs:
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        if "\t" in line:
            raise UsageError(
                f"class list {path} has a tab in line {number} ({line!r}): give one class name a "
                "line and nothing else"
            )
    return [(line, ()) for line in lines if line]


def _parse_json(path: Path, text: str) -> _Pairs:
    # Pairs instead of a dict, because a dict would silently swallow a class named twice.
    try:
        value = json.loads(text, object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise UsageError(f"class list {path} is not valid JSON: {error}") from error
    pairs: _Pairs = []
    for item in value if isinstance(value, list) else [None]:
        match item:
            case str(name):
                pairs.append((name.strip(), ()))
            case (str(name), str(description)):
                pairs.append((name.strip(), (description,)))
            case (str(name), list(descriptions)) if all(isinstance(d, str) for d in descriptions):
                pairs.append((name.strip(), tuple(descriptions)))
            case _:
                raise UsageError(
                    f"class list {path} must be JSON {{class: [descriptions]}}; it holds {item!r}"
                )
    return pairs


def _check_names(source: Path | str, names: tuple[str, ...]) -> None:
    where = source if isinstance(source, str) else f"class list {source}"
    if not names:
        raise UsageError(f"{where} is empty: write one class a line")
    if not all(names):
        raise UsageError(f"{where} holds an empty class name: remove it")
    if len(names) == 1:
        raise UsageError(f"{where} holds one class only ({names[0]!r}): give at least two")
    seen: dict[str, str] = {}
    doubles = []
    for name in names:
        first = seen.get(normalise_name(name))
        if first is not None:
            doubles.append(f"{name!r}" if first == name else f"{name!r} (as {first!r})")
        seen.setdefault(normalise_name(name), name)
    if doubles:
        raise UsageError(f"{where} holds duplicates: {_some(doubles)}; keep each class once")


def match_labels(
    class_list: ClassList, label_names: Sequence[str], *, superset: bool = False
) -> tuple[int, ...]:
    """Return, for each label name, its index in the class list.

    Names match exactly or, failing that, up to case, "_" and spaces.

    Args:
        class_list: C classes.
        label_names: the names that the data has, e.g. its folders.
        superset: also accept a class list that names classes no label has.

    Raises:
        UsageError: a label is not in the list or (unless `superset`) a listed class has no
            label; the message names both.
    """
    exact = {name: index for index, name in enumerate(class_list.names)}
    tolerant = {normalise_name(name): index for name, index in exact.items()}
    found = [exact.get(name, tolerant.get(normalise_name(name))) for name in label_names]
    unlisted = [name for name, index in zip(label_names, found, strict=True) if index is None]
    unused = [] if superset else [n for n, i in exact.items() if i not in found]
    if unlisted or unused:
        complaints = []
        if unlisted:
            complaints.append(f"labels that the class list lacks: {_some(map(repr, unlisted))}")
        if unused:
            complaints.append(f"listed classes that no label has: {_some(map(repr, unused))}")
        raise UsageError(
            "the class list does not fit the labels: "
            + "; ".join(complaints)
            + " (correct the list, or pass --unlabelled if the folders are not classes)"
        )
    return tuple(index for index in found if index is not None)


def _some(items: Iterable[str]) -> str:
    shown = list(items)
    rest = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return ", ".join(shown[:5]) + rest
