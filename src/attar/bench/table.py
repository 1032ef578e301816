"""One table from the records of a grid: a row a method, a column a held-out domain."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attar.files import write_text
from attar.records import Record

METRIC = "acc1"
_ROW_NAMES = {
    "teacher": "teacher (its head saw this domain)",
    "strict teacher": "strict teacher (never saw this domain)",
    "baseline": "backbone with only its projection fitted",
}


def write_tables(records: Sequence[Record], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write results.jsonl and table.md, both whole or not at all; return the table's path."""
    lines = [json.dumps(asdict(record), ensure_ascii=False) for record in records]
    write_text(folder / "results.jsonl", "".join(f"{line}\n" for line in lines))
    write_text(folder / "table.md", domains_table(records, facts))
    return folder / "table.md"


def domains_table(records: Iterable[Record], facts: Mapping[str, Any]) -> str:
    """Return the table as Markdown: top-1 accuracy in %, mean over seeds (± deviation from two).

    `in-domain` is the mean accuracy on source validation images over the held-out domains present.
    """
    cells: dict[str, dict[str, list[float]]] = {}
    inside: dict[str, list[float]] = {}
    for record in records:
        if record.domain != "all" or METRIC not in record.metrics:
            continue
        row = _row_of(record)
        if row is None:
            continue
        value = 100 * record.metrics[METRIC]
        if record.split == "held_out":
            domain = str(record.extra["held_out_domain"])
            cells.setdefault(row, {}).setdefault(domain, []).append(value)
        elif record.split == "val":
            inside.setdefault(row, []).append(value)
    domains = sorted({domain for row in cells.values() for domain in row})
    lines = [
        "| | " + " | ".join(domains) + " | mean | in-domain |",
        "| --- |" + " ---: |" * (len(domains) + 2),
    ]
    for row in sorted(cells, key=_order):
        texts = [_text(cells[row].get(domain, [])) for domain in domains]
        means = [statistics.fmean(v) for v in cells[row].values()]
        whole = f"{statistics.fmean(means):.1f}" if len(means) == len(domains) else "–"
        lines.append(f"| {row} | " + " | ".join([*texts, whole, _text(inside.get(row, []))]) + " |")
    noted = ", ".join(f"{name}: {value}" for name, value in facts.items())
    return "\n".join([*lines, "", f"Top-1 accuracy in % on the held-out domain ({noted})."]) + "\n"


def _row_of(record: Record) -> str | None:
    if record.role == "student":
        return record.method
    return _ROW_NAMES.get(record.role)


def _order(row: str) -> tuple[int, str]:
    names = list(_ROW_NAMES.values())
    return (names.index(row), "") if row in names else (len(names), row)


def _text(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.1f}"
    return mean
