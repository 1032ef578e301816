"""Coherence with the teacher on seen and unseen images: a table, and a small plot of each metric.

Read from the records of the task "coherence" alone (Li et al., ICCV 2023, eq. 4, 5 and 7).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from attar.records import Record
from attar.report import figures
from attar.report.looks import Style, legend_mark
from attar.report.tables import ALL, COHERENCE, NOTHING, ROLES, Series

_PLACES = {
    "train": "training images",
    "val": "validation images",
    "test_id": "unseen images",
    "unseen_classes": "unseen classes",
    "held_out": "unseen domain",
    "test_ood": "out of distribution",
}
"""Split -> what its images are to the student, the seen first."""

_METRICS = {
    "relative_coherence": ("relative coherence", "relative", 3),
    "neighborhood_overlap": ("neighbours in common", "common", 3),
    "alignment_inversions": ("inverted classes", "inverted", 2),
    "squared_distance": ("squared distance", "distance²", 3),
    "angle": ("angle in degrees", "angle, °", 1),
}
"""Metric without its @k -> (title, heading of a column, decimals)."""
_PLOTTED = ("relative_coherence", "neighborhood_overlap", "alignment_inversions")


@dataclass(frozen=True, kw_only=True)
class CoherenceRow:
    """One model on one domain of one split: the mean over the runs that measured it."""

    place: str
    """What the images are, in words."""
    overall: bool
    """Whether these are all images of the split."""
    series: Series
    num_runs: int
    num_images: int
    """The most that one run had."""
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class CoherenceView:
    """The page's section: legend, plots and table as text."""

    legend: list[tuple[Markup, str]]
    plots: list[tuple[str, Markup]]
    columns: list[str]
    rows: list[tuple[str, Markup, str, list[str]]]
    """(place, mark, label, cells)"""


def coherence_rows(named: Iterable[tuple[str, Record]]) -> list[CoherenceRow]:
    """Sort (run name, record) pairs into rows: seen images first, teacher to baseline inside.

    Of two records of the same measurement the later wins. A split's only domain is not shown beside
    "all", which it is.
    """
    found: dict[tuple[str, str, str, Series], dict[str, Record]] = {}
    for run, record in named:
        if record.task == COHERENCE:
            series = Series(record.role, record.method, record.model)
            key = (record.dataset, record.split, record.domain, series)
            found.setdefault(key, {})[run] = record
    domains: dict[tuple[str, str], set[str]] = {}
    for dataset, split, domain, _ in found:
        domains.setdefault((dataset, split), set()).add(domain)
    several = len({dataset for dataset, *_ in found}) > 1
    rows = []
    for dataset, split, domain, series in sorted(found, key=_order):
        if domain != ALL and ALL in domains[dataset, split] and len(domains[dataset, split]) == 2:
            continue
        records = list(found[dataset, split, domain, series].values())
        place = _PLACES.get(split, split) + (f" of {dataset}" if several else "")
        rows.append(
            CoherenceRow(
                place=place if domain == ALL else f"{place}: {domain}",
                overall=domain == ALL,
                series=series,
                num_runs=len(records),
                num_images=max(record.num_images for record in records),
                values=_means(records),
            )
        )
    return rows


def coherence_lines(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Rows for a terminal: a header, then each model on each split; empty without such records."""
    rows = coherence_rows(("", record) for record in records)
    metrics = _metrics(rows)
    lines = [("images", "model", "count", *map(_column, metrics))] if rows else []
    for row in rows:
        lines.append((row.place, row.series.label, f"{row.num_images:,}", *_cells(row, metrics)))
    return lines


def coherence_view(
    rows: Sequence[CoherenceRow],
    styles: Mapping[Series, Style],
    labels: Mapping[Series, str],
) -> CoherenceView | None:
    """Make the page's section; None where nothing was measured."""
    if not rows:
        return None
    metrics = _metrics(rows)
    marks = {row.series: Markup(legend_mark(styles[row.series])) for row in rows}
    shown = [row for row in rows if row.overall] or rows
    return CoherenceView(
        legend=[(mark, labels[series]) for series, mark in marks.items()],
        plots=[
            (_title(metric), Markup(_plot(shown, metric, styles, labels)))
            for metric in _plotted(metrics)
        ],
        columns=["count", *map(_column, metrics)],
        rows=[
            (
                row.place,
                marks[row.series],
                labels[row.series] + (f", {row.num_runs} runs" if row.num_runs > 1 else ""),
                [f"{row.num_images:,}", *_cells(row, metrics)],
            )
            for row in rows
        ],
    )


def _plot(
    rows: Sequence[CoherenceRow],
    metric: str,
    styles: Mapping[Series, Style],
    labels: Mapping[Series, str],
) -> str:
    lines: dict[str, list[tuple[Series, float]]] = {}
    for row in rows:
        lines.setdefault(row.place, []).append((row.series, row.values.get(metric, math.nan)))
    readings = [
        f"{place}, " + ", ".join(f"{labels[one]} {value:.3g}" for one, value in values)
        for place, values in lines.items()
    ]
    alt = f"Dot plot of {_title(metric)}: " + "; ".join(readings)
    return figures.dot_plot(list(lines.items()), styles, alt, f"coherence {metric}")


def _plotted(metrics: Sequence[str]) -> list[str]:
    """Choose a metric of each kind that is drawn: the middle one where there are several k."""
    kinds = [[m for m in metrics if _kind(m) == kind] for kind in _PLOTTED]
    return [members[len(members) // 2] for members in kinds if members]


def _order(key: tuple[str, str, str, Series]) -> tuple[object, ...]:
    dataset, split, domain, series = key
    places, roles = list(_PLACES), list(ROLES)
    place = places.index(split) if split in places else len(places)
    role = roles.index(series.role) if series.role in roles else len(roles)
    return place, split, dataset, domain != ALL, domain, role, series


def _means(records: Sequence[Record]) -> dict[str, float]:
    """Average each known metric over the records that have it."""
    found: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.metrics.items():
            if _kind(name) in _METRICS and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _metrics(rows: Iterable[CoherenceRow]) -> list[str]:
    """List the metrics that some row has, each kind by rising k."""
    names = {name for row in rows for name in row.values}
    return sorted(names, key=lambda name: (list(_METRICS).index(_kind(name)), _k(name)))


def _kind(metric: str) -> str:
    return metric.partition("@")[0]


def _k(metric: str) -> int:
    k = metric.partition("@")[2]
    return int(k) if k.isdecimal() else 0


def _title(metric: str) -> str:
    return _METRICS[_kind(metric)][0] + _at(metric)


def _column(metric: str) -> str:
    return _METRICS[_kind(metric)][1] + _at(metric)


def _at(metric: str) -> str:
    return f" @{_k(metric)}" if "@" in metric else ""


def _cells(row: CoherenceRow, metrics: Sequence[str]) -> list[str]:
    cells = []
    for metric in metrics:
        value, decimals = row.values.get(metric, math.nan), _METRICS[_kind(metric)][2]
        cells.append(f"{value:.{decimals}f}" if math.isfinite(value) else NOTHING)
    return cells
