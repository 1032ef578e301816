"""Several labels an image: a table of the records of the task "multi_label"."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from attar.records import Record
from attar.report.looks import Style, legend_mark
from attar.report.tables import MULTI_LABEL, ROLES, Series, percent

_PLACES = {
    "val": "validation images",
    "test_id": "unseen images",
    "unseen_classes": "images with unseen classes",
    "held_out": "unseen domain",
    "test_ood": "out of distribution",
}
_LABELS = {"seen": "seen labels", "unseen": "unseen labels"}
_METRICS = {"m1": "right decisions", "f1_paper": "F1 as printed", "macro_f1": "macro F1"}


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One model on one group of labels of one split: the mean over the runs that measured it."""

    place: str
    """What the images and labels are, in words."""
    series: Series
    num_runs: int
    num_images: int
    num_labels: int
    values: Mapping[str, float]

    def cells(self) -> list[str]:
        """Return counts and metrics as text, in the order of `columns`."""
        numbers = (percent(self.values.get(name, math.nan)) for name in _METRICS)
        return [f"{self.num_images:,}", f"{self.num_labels:,}", *numbers]


@dataclass(frozen=True, kw_only=True)
class LabelView:
    """The page's section as text."""

    columns: list[str]
    rows: list[tuple[str, Markup, str, list[str]]]
    """(place, mark, label, cells)"""


def columns() -> list[str]:
    """Return the headings of the number columns."""
    return ["images", "labels", *(f"{name}, %" for name in _METRICS.values())]


def label_rows(named: Iterable[tuple[str, Record]]) -> list[LabelRow]:
    """Sort (run name, record) pairs into rows: seen images and labels first.

    Of two records of the same measurement the later wins.
    """
    found: dict[tuple[str, str, str, Series], dict[str, Record]] = {}
    for run, record in named:
        if record.task == MULTI_LABEL:
            series = Series(record.role, record.method, record.model)
            labels = str(record.extra.get("labels", ""))
            found.setdefault((record.split, labels, record.dataset, series), {})[run] = record
    several = len({dataset for _, _, dataset, _ in found}) > 1
    rows = []
    for split, labels, dataset, series in sorted(found, key=_order):
        records = list(found[split, labels, dataset, series].values())
        words = [_PLACES.get(split, split), _LABELS.get(labels, labels)]
        place = ", ".join(word for word in words if word) + (f" of {dataset}" if several else "")
        rows.append(
            LabelRow(
                place=place,
                series=series,
                num_runs=len(records),
                num_images=max(record.num_images for record in records),
                num_labels=max(int(record.extra.get("num_classes", 0)) for record in records),
                values=_means(records),
            )
        )
    return rows


def label_lines(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Rows for a terminal: a header, then each model; empty without such records."""
    rows = label_rows(("", record) for record in records)
    lines = [("images and labels", "model", *columns())] if rows else []
    return lines + [(row.place, row.series.label, *row.cells()) for row in rows]


def label_view(
    rows: Sequence[LabelRow],
    styles: Mapping[Series, Style],
    labels: Mapping[Series, str],
) -> LabelView | None:
    """Make the page's section; None where nothing was measured."""
    if not rows:
        return None
    return LabelView(
        columns=columns(),
        rows=[
            (
                row.place,
                Markup(legend_mark(styles[row.series])),
                labels[row.series] + (f", {row.num_runs} runs" if row.num_runs > 1 else ""),
                row.cells(),
            )
            for row in rows
        ],
    )


def _order(key: tuple[str, str, str, Series]) -> tuple[object, ...]:
    split, labels, dataset, series = key
    place, group, role = (
        list(known).index(one) if one in known else len(known)
        for known, one in ((_PLACES, split), (_LABELS, labels), (ROLES, series.role))
    )
    return place, split, group, dataset, role, series


def _means(records: Sequence[Record]) -> dict[str, float]:
    """Average each metric over the records that have it."""
    found = {name: [r.metrics[name] for r in records if name in r.metrics] for name in _METRICS}
    return {name: sum(values) / len(values) for name, values in found.items() if values}
