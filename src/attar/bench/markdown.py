"""What all tables of grids share: a file of records, Markdown, mean and deviation."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from attar.files import write_text
from attar.records import Record

NOTHING = "–"
"""Stands where there is no value."""
RESULTS = "results.jsonl"
"""The records of a table, beside it."""


def write_results(records: Iterable[Record], folder: Path, table: str) -> Path:
    """Write results.jsonl and table.md, each whole or not at all; return the table's path."""
    lines = [json.dumps(asdict(record), ensure_ascii=False) for record in records]
    write_text(folder / RESULTS, "".join(f"{line}\n" for line in lines))
    write_text(folder / "table.md", table)
    return folder / "table.md"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *body]
    return "\n".join(
        f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines
    )


def mean_text(values: Sequence[float], *, spread: bool = True) -> str:
    """Return "mean ± standard deviation" with one decimal; the deviation only of two or more."""
    if not values:
        return NOTHING
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if spread and len(values) > 1 else mean
