"""One table from the records of a grid: a row a method, a column a held-out domain."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attar.bench.markdown import markdown, mean_text, write_results
from attar.records import Record

METRIC = "acc1"
_POCKET = "teacher pocket (its head saw this domain)"
_ROW_NAMES = {
    "teacher": "teacher",
    "strict teacher": "strict teacher (never saw this domain)",
    "baseline": "backbone with only its projection fitted",
}


def write_tables(records: Sequence[Record], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write results.jsonl and table.md, both whole or not at all; return the table's path."""
    return write_results(records, folder, domains_table(records, facts))


def domains_table(records: Iterable[Record], facts: Mapping[str, Any]) -> str:
    """Return the table as Markdown: top-1 accuracy in %, mean over seeds (± deviation from two).

    `mean` is over domains, and given when there are all of them. `in-domain` is the accuracy on
    source validation images, averaged over the held-out domains present.
    """
    cells: dict[str, dict[str, list[float]]] = {}
    inside: dict[str, dict[str, list[float]]] = {}
    for record in records:
        row = _row_of(record)
        if row is None or record.domain != "all" or METRIC not in record.metrics:
            continue
        part = {"held_out": cells, "val": inside}.get(record.split)
        if part is not None:
            domain = str(record.extra["held_out_domain"])
            value = 100 * record.metrics[METRIC]
            part.setdefault(row, {}).setdefault(domain, []).append(value)
    domains = sorted({domain for row in cells.values() for domain in row})
    body = []
    for row in sorted(cells, key=_order):
        # A method's values are of different seeds; any other's repeat one measurement.
        spread = row not in (_POCKET, *_ROW_NAMES.values())
        texts = [mean_text(cells[row].get(domain, []), spread=spread) for domain in domains]
        whole = len(cells[row]) == len(domains)
        ends = [_means(cells[row]) if whole else [], _means(inside.get(row, {}))]
        body.append([row, *texts, *(mean_text(values, spread=False) for values in ends)])
    noted = ", ".join(f"{name}: {value}" for name, value in facts.items())
    table = markdown(["", *domains, "mean", "in-domain"], body)
    return f"{table}\n\nTop-1 accuracy in % on the held-out domain ({noted}).\n"


def _row_of(record: Record) -> str | None:
    if record.role == "student":
        return record.method
    if record.role == "teacher" and record.model == "pocket":
        return _POCKET
    return _ROW_NAMES.get(record.role)


def _order(row: str) -> tuple[int, str]:
    names = [_POCKET, *_ROW_NAMES.values()]
    return (names.index(row), "") if row in names else (len(names), row)


def _means(values_of: Mapping[str, Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in values_of.values()]
