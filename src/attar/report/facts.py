"""Facts about a run as (name, text) pairs: sizes, latency, environment."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from attar.report.read import RunFiles

Pairs = list[tuple[str, str]]

_LATENCY = {
    "median_ms": ("median time", "ms"),
    "p90_ms": ("90th percentile", "ms"),
    "images_per_s": ("images a second", ""),
    "preprocess_ms": ("reading and resizing one photo", "ms"),
    "peak_rss_mb": ("peak memory", "MB"),
}
_ALREADY_SAID = (*_LATENCY, "model_mb", "bundle_mb")
_CHECKSUMS = ("files", "checksums")


def sizes(run: RunFiles) -> Pairs:
    """The bundle's files with their sizes, the largest first, then the sum."""
    if run.bundle is None:
        return []
    ranked = sorted(run.bundle.sizes.items(), key=lambda item: (-item[1], item[0]))
    rows = [(PurePosixPath(name).as_posix(), size_text(size)) for name, size in ranked]
    return [*rows, ("together", size_text(sum(run.bundle.sizes.values())))]


def bundle_facts(run: RunFiles) -> Pairs:
    """What bundle.json says, without its checksums."""
    return plain_rows(run.bundle.description, skip=_CHECKSUMS) if run.bundle else []


def latency(run: RunFiles) -> Pairs:
    """The measured times, in words."""
    values = run.latency
    return [
        (words, f"{values[name]:,.1f}\u00a0{unit}".strip())
        for name, (words, unit) in _LATENCY.items()
        if isinstance(values.get(name), int | float)
    ]


def latency_conditions(run: RunFiles) -> Pairs:
    """Everything else that the latency file says: threads, batch, machine."""
    return plain_rows(run.latency, skip=_ALREADY_SAID)


def size_text(size: int) -> str:
    """1536 -> "1.5 kB"; decimal units."""
    if size >= 100_000:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.1f} kB" if size >= 1000 else f"{size} bytes"


def plain_rows(value: Mapping[str, Any], skip: Sequence[str] = (), prefix: str = "") -> Pairs:
    """Flatten nested values to dotted names; a list becomes one line, nothing becomes "–"."""
    rows: Pairs = []
    for name, item in value.items():
        if name in skip:
            continue
        if isinstance(item, Mapping):
            rows += plain_rows(item, prefix=f"{prefix}{name}.")
        elif isinstance(item, list | tuple):
            rows.append((f"{prefix}{name}", ", ".join(map(str, item)) or "–"))
        elif isinstance(item, float):
            rows.append((f"{prefix}{name}", f"{item:.6g}"))
        else:
            rows.append((f"{prefix}{name}", "–" if item is None else str(item)))
    return rows
