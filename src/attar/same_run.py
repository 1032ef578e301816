"""Which options may differ between two calls that ask for the same run, or the same cell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ASKING = (
    "budget",
    "price",
    "request_size",
    "parallel",
    "rate",
    "attempts",
    "backoff",
    "timeout",
)

MAY_CHANGE = frozenset(
    {
        # How a teacher is paid and asked: its answers stay.
        *(f"embed.{name}" for name in _ASKING),
        # Where a store is cut into shards: the rows and their order stay.
        "embed.shard_rows",
        "embed.commit_seconds",
        # Who reads images: a batch is a function of seed, step, rank and world alone.
        "embed.workers",
        "training.workers",
        "evaluation.workers",
        # How often something is written; no random number is drawn for it.
        "training.log_every",
        "training.checkpoint_every",
        # How many images pass a network at once when none of them is learnt from. Its BatchNorm is
        # fixed then, so an image's features depend on the others in the order of floating-point
        # sums alone. That is no more than another machine changes, or a store that was killed and
        # went on: what it lacks is put into other batches anyway.
        "embed.batch_size",
        "evaluation.batch_size",
    }
)
"""Options, as "section.name", that change the pace and the memory of a run and not its result."""

_PATHS = ("data", "store", "classes", "baseline", "start_from", "texts", "splits.unseen_classes")
"""Options that are paths: however one is written, it is the same place."""


def deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run, {name: value or section}, without those that `MAY_CHANGE`."""
    return {
        section: {k: v for k, v in value.items() if f"{section}.{k}" not in MAY_CHANGE}
        if isinstance(value, Mapping)
        else value
        for section, value in options.items()
    }


def differing(
    old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any], section: str = ""
) -> list[str]:
    """List the options that decide a result and differ, e.g. "training.lr 0.001 there, 0.01 asked".

    What the old side lacks had its default there.
    """
    found = []
    for name in dict.fromkeys([*old, *new]):
        default, path = defaults.get(name), f"{section}{name}"
        there, asked = old.get(name, default), new.get(name)
        if isinstance(there, Mapping) and isinstance(asked, Mapping):
            known = default if isinstance(default, Mapping) else {}
            found += differing(there, asked, known, f"{path}.")
        elif path not in MAY_CHANGE and not _same(path, there, asked):
            found.append(f"{path} {there} there, {asked} asked")
    return found


def _same(path: str, there: Any, asked: Any) -> bool:
    return bool(there == asked) or (path in _PATHS and _places(there) == _places(asked))


def _places(value: Any) -> Any:
    """Return one or several paths with their links followed; anything else as it is."""
    if isinstance(value, list):
        return [_places(one) for one in value]
    return Path(value).resolve() if isinstance(value, str) else value
