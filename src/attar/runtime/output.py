"""Write predictions as a table, as JSON lines or as CSV."""

import csv
import importlib.util
import json
from collections.abc import Callable, Iterable
from typing import TextIO

from attar.runtime.predict import Prediction

NONE_OF_THESE = "none of these"


def answer(prediction: Prediction) -> str:
    """Return the answer in words: the label, "none of these", or that the file is unreadable."""
    if prediction.error is not None:
        return "unreadable"
    return prediction.label or NONE_OF_THESE


def write_json(predictions: Iterable[Prediction], out: TextIO) -> None:
    """Write one JSON object a line: path, label (null: none of these), confidence, top, error."""
    for prediction in predictions:
        row = {
            "path": str(prediction.path),
            "label": prediction.label,
            "confidence": prediction.confidence,
            "abstained": prediction.abstained,
            "top": [{"label": name, "confidence": value} for name, value in prediction.top],
            "error": prediction.error,
        }
        out.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_csv(predictions: Iterable[Prediction], out: TextIO) -> None:
    """Write CSV with a header; an unreadable image has an empty label and its reason in error."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "label", "confidence", "abstained", "top_label", "error"])
    for p in predictions:
        confidence = "" if p.confidence is None else f"{p.confidence:.6f}"
        top_label = p.top[0][0] if p.top else ""
        row = [p.path, p.label or "", confidence, int(p.abstained), top_label, p.error or ""]
        writer.writerow(row)


def write_table(predictions: Iterable[Prediction], out: TextIO) -> None:
    """Write a table: rich's on a terminal when rich is installed, else plain columns."""
    header = ("image", "answer", "confidence", "then")
    rows = [_table_row(prediction) for prediction in predictions]
    if not out.isatty() or importlib.util.find_spec("rich") is None:
        _plain_table([header, *rows], out)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for row in rows:
        table.add_row(*map(escape, row))
    Console(file=out, highlight=False).print(table)


def _table_row(prediction: Prediction) -> tuple[str, str, str, str]:
    confidence = "" if prediction.confidence is None else f"{prediction.confidence:.1%}"
    others = prediction.top if prediction.abstained else prediction.top[1:]
    then = ", ".join(f"{name} {value:.1%}" for name, value in others) or (prediction.error or "")
    return str(prediction.path), answer(prediction), confidence, then


def _plain_table(rows: list[tuple[str, str, str, str]], out: TextIO) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        out.write("  ".join([*cells, row[3]]).rstrip() + "\n")


WRITERS: dict[str, Callable[[Iterable[Prediction], TextIO], None]] = {
    "table": write_table,
    "json": write_json,
    "csv": write_csv,
}
