"""Students, teacher and other models in one table: how right they are, and what they cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from attar.records import Record
from attar.report import scatter
from attar.report.looks import Style, legend_mark
from attar.report.tables import (
    COST,
    HEADLINES,
    NOTHING,
    ROLES,
    SPLITS,
    ResultTable,
    Series,
    percent,
    result_tables,
    series_labels,
    task_words,
)

_HEADINGS = ("million parameters", "MB", "ms an image")


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """One series: its accuracies and what it costs, means over the runs that it stands in."""

    series: Series
    accuracies: tuple[float, ...]
    """In the order of the table's columns, NaN where it was not measured."""
    num_parameters: float
    """NaN, like the next two, where the model did not run on the machine that measured."""
    megabytes: float
    latency_ms: float

    def cells(self) -> list[str]:
        """Return the numbers as text, in the order of `CostTable.headings`."""
        numbers = (self.num_parameters / 1e6, self.megabytes, self.latency_ms)
        return [
            *(percent(value) for value in self.accuracies),
            *(f"{value:,.3g}" if math.isfinite(value) else NOTHING for value in numbers),
        ]


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Every series on one split of one data set."""

    dataset: str
    split: str
    columns: tuple[str, ...]
    """What each accuracy is of: "accuracy", "linear probe 5 shot"."""
    rows: tuple[CostRow, ...]
    conditions: str
    """How the times were taken, in words."""

    @property
    def headings(self) -> list[str]:
        """The headings of the number columns."""
        return [*self.columns, *_HEADINGS]


@dataclass(frozen=True, kw_only=True)
class CostView:
    """A table as the page shows it."""

    heading: str
    plot: Markup
    columns: list[str]
    rows: list[tuple[Markup, str, list[str]]]
    """(mark, label, cells)"""
    conditions: str


def cost_tables(
    named: Iterable[tuple[str, Record]], tables: Sequence[ResultTable]
) -> list[CostTable]:
    """Join the costs among (run name, record) pairs with the accuracies of the same images.

    There is a table for each split of a data set on which the cost of any model was measured.
    """
    costs: dict[tuple[str, str], dict[Series, list[Record]]] = {}
    for _, record in named:
        if record.task == COST:
            series = Series(record.role, record.method, record.model)
            of_place = costs.setdefault((record.dataset, record.split), {})
            of_place.setdefault(series, []).append(record)
    joined = (
        _join(place, of_series, [t for t in tables if (t.dataset, t.split) == place])
        for place, of_series in costs.items()
    )
    return sorted((t for t in joined if t.rows), key=lambda table: _place(table.split))


def cost_lines(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Rows for a terminal: a header, then each model; empty where no cost was measured."""
    named = [("", record) for record in records]
    lines: list[tuple[str, ...]] = []
    for table in cost_tables(named, result_tables(named)):
        labels = series_labels(row.series for row in table.rows)
        lines += [(f"{table.dataset}: {table.split}", "model", *table.headings)]
        lines += [("", labels[row.series], *row.cells()) for row in table.rows]
    # A terminal's table has one width: shorter headings are filled up.
    width = max(map(len, lines), default=0)
    return [line + ("",) * (width - len(line)) for line in lines]


def cost_views(
    tables: Sequence[CostTable],
    styles: Mapping[Series, Style],
    labels: Mapping[Series, str],
) -> list[CostView]:
    """Make the page's tables, each with its scatter of accuracy against size and latency."""
    several = len({table.dataset for table in tables}) > 1
    return [
        CostView(
            heading=SPLITS.get(table.split, table.split).capitalize()
            + (f" of {table.dataset}" if several else ""),
            plot=Markup(scatter.cost_plot(_points(table, styles, labels), _key(table))),
            columns=table.headings,
            rows=[
                (
                    Markup(legend_mark(styles[row.series])),
                    labels[row.series],
                    row.cells(),
                )
                for row in table.rows
            ],
            conditions=table.conditions,
        )
        for table in tables
    ]


def _points(
    table: CostTable, styles: Mapping[Series, Style], labels: Mapping[Series, str]
) -> list[scatter.Point]:
    return [
        scatter.Point(
            label=labels[row.series],
            style=styles[row.series],
            accuracy=100 * row.accuracies[0],
            num_parameters=row.num_parameters,
            latency_ms=row.latency_ms,
        )
        for row in table.rows
    ]


def _key(table: CostTable) -> tuple[str, str]:
    """Return what the accuracy axis is called, and what tells the figure from others."""
    return f"{table.columns[0]}, %", f"cost {table.dataset} {table.split}"


def _join(
    place: tuple[str, str],
    costs: Mapping[Series, Sequence[Record]],
    tables: Sequence[ResultTable],
) -> CostTable:
    series = dict.fromkeys(row.series for table in tables for row in table.rows)
    rows = [
        CostRow(
            series=one,
            accuracies=tuple(_accuracy(table, one) for table in tables),
            **{name: _mean(costs.get(one, ()), name) for name in _COSTS},
        )
        for one in sorted(series, key=lambda one: _position(one.role))
    ]
    records = [record for of_series in costs.values() for record in of_series]
    return CostTable(
        dataset=place[0],
        split=place[1],
        columns=tuple(_column(table) for table in tables),
        rows=tuple(rows),
        conditions=_conditions(records),
    )


_COSTS = ("num_parameters", "megabytes", "latency_ms")


def _accuracy(table: ResultTable, series: Series) -> float:
    known = [row.value(table.headline) for row in table.rows if row.series == series]
    known = [value for value in known if math.isfinite(value)]
    return fmean(known) if known else math.nan


def _mean(records: Sequence[Record], name: str) -> float:
    known = [float(record.metrics[name]) for record in records if name in record.metrics]
    return fmean(known) if known else math.nan


def _column(table: ResultTable) -> str:
    return task_words(table.task) if table.task else HEADLINES[table.headline]


def _conditions(records: Sequence[Record]) -> str:
    """Say where and how the times were taken: the sets of what the records name."""

    def named(name: str) -> str:
        values: dict[Any, None] = dict.fromkeys(
            record.extra[name] for record in records if name in record.extra
        )
        return ", ".join(str(value) for value in values)

    facts = {
        "on": named("cpu"),
        "device": named("device"),
        "threads": named("threads"),
        "by": named("runtime"),
    }
    return "; ".join(f"{name} {value}" for name, value in facts.items() if value)


def _position(role: str) -> int:
    return ROLES.index(role) if role in ROLES else len(ROLES)


def _place(split: str) -> int:
    return list(SPLITS).index(split) if split in SPLITS else len(SPLITS)
