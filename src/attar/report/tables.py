"""Records to rows: teacher, student and baseline side by side, per domain.

Fractions (0..1) stay fractions in `Row`; only the text functions turn them into percent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from attar.records import Record

ROLES = ("teacher", "student", "baseline")
SPLITS = {
    "held_out": "held-out domain",
    "test_id": "test images of the training domains",
    "test_ood": "out-of-distribution test images",
    "val": "validation images",
}
"""What each split is in words, the one that matters most first."""
ALL = "all"
_PLAIN = "erm"
"""The method that distils nothing."""
_UNTRAINED = ("", "untrained", "projection-only")
"""Methods of rows whose confidence nobody fitted; a trained student's is, on source validation."""
NOTHING = "–"

_SIDE_BY_SIDE = ("zeroshot_classification", "fidelity")
"""Tasks that share one table; any other task gets its own, as their accuracies differ in kind."""
COHERENCE = "coherence"
"""A task without accuracies: `attar.report.coherence` shows it."""
MULTI_LABEL = "multi_label"
"""A task of several labels an image: `attar.report.several_labels` shows it."""
COST = "cost"
"""Parameters, size and latency: `attar.report.costs` shows them."""
METRICS = {
    "acc1_std": "± over seeds",
    "map_11_points_std": "± over seeds",
    "mean_per_class_recall": "mean per class",
    "ece": "calibration error",
    "agreement": "agreement with teacher",
    "mean_cosine": "cosine to teacher",
    "effective_robustness": "effective robustness",
    "kept": "share of clean accuracy",
}
"""The metrics shown beside the per-domain accuracy, each with its heading."""
HEADLINES = {
    "score": "score by each data set's own metric",
    "acc1": "accuracy",
    "map_11_points": "mean average precision",
    "agreement": "agreement with the teacher",
}
"""The metric that a table shows per domain, in words: the first that it has."""


@dataclass(frozen=True, order=True)
class Series:
    """One line of comparison: the same role, method and model, in however many runs."""

    role: str
    method: str
    model: str

    @property
    def label(self) -> str:
        """E.g. "student · vl2v-adip"; "teacher · pocket"; a role beyond the three says enough."""
        name = self.method or (self.model if self.role in ROLES else "")
        return f"{self.role} · {name}" if name and name != self.role else self.role


@dataclass(frozen=True, kw_only=True)
class Row:
    """A series' numbers on one split of one data set."""

    series: Series
    runs: tuple[str, ...]
    values: Mapping[str, Mapping[str, float]]
    """domain -> metric -> value; the domain "all" is every image together."""
    counts: Mapping[str, int]
    """domain -> number of images, where known."""

    def value(self, metric: str, domain: str = ALL) -> float:
        """Return the number, NaN where nobody measured it."""
        return self.values.get(domain, {}).get(metric, math.nan)


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """Every series on one split of one data set."""

    dataset: str
    split: str
    task: str
    domains: tuple[str, ...]
    """Domains to show, "all" last; only "all" when the data has no domains."""
    headline: str
    """The metric shown per domain, of `HEADLINES`."""
    rows: tuple[Row, ...]
    averaged: bool = False
    """Whether "all" is the plain mean over the domains, made by `average_runs`."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The other metrics that at least one row has over all images."""
        return tuple(
            metric
            for metric in METRICS
            if metric != self.headline and any(_finite(row.value(metric)) for row in self.rows)
        )


def series_labels(series: Iterable[Series]) -> dict[Series, str]:
    """Label each series, with the model's name only where two would read the same."""
    unique = list(dict.fromkeys(series))
    labels = [one.label for one in unique]
    return {
        one: f"{label} ({one.model})" if labels.count(label) > 1 and one.model else label
        for one, label in zip(unique, labels, strict=True)
    }


def with_shared_baseline(named: Sequence[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """Where several methods are compared, call the student of a plain supervised run the baseline.

    Alone, that run's student is what the run made; beside distilled students it is what they are
    measured against.
    """
    methods = {record.method for _, record in named if record.role == "student"}
    if not methods - {_PLAIN}:
        return list(named)
    return [
        (run, replace(record, role="baseline"))
        if record.role == "student" and record.method == _PLAIN
        else (run, record)
        for run, record in named
    ]


def result_tables(named: Iterable[tuple[str, Record]]) -> list[ResultTable]:
    """Group (run name, record) pairs into tables, the split that matters most first.

    Of two records of the same measurement the later wins (an evaluation that was run again).
    Rows of different runs that are equal in every number (the same teacher) become one.
    """
    groups: dict[tuple[str, str, str], list[tuple[str, Record]]] = {}
    for run, record in named:
        if record.task in (COHERENCE, MULTI_LABEL, COST):
            continue
        task = "" if record.task in _SIDE_BY_SIDE else record.task
        groups.setdefault((record.dataset, record.split, task), []).append((run, record))
    tables = [
        _table(dataset, split, task, members) for (dataset, split, task), members in groups.items()
    ]
    return sorted(tables, key=lambda t: (bool(t.task), _position(tuple(SPLITS), t.split)))


def _table(
    dataset: str, split: str, task: str, members: Sequence[tuple[str, Record]]
) -> ResultTable:
    values: dict[tuple[str, Series], dict[str, dict[str, float]]] = {}
    counts: dict[tuple[str, Series], dict[str, int]] = {}
    for run, record in members:
        key = (run, Series(record.role, record.method, record.model))
        cell = values.setdefault(key, {}).setdefault(record.domain, {})
        cell.update({k: float(v) for k, v in record.metrics.items() if _finite(v)})
        seen = counts.setdefault(key, {})
        # Where only some images have labels, the accuracy's count is the one to reason with.
        if "acc1" in record.metrics or record.domain not in seen:
            seen[record.domain] = record.num_images
    rows = [
        _with_total(Row(series=series, runs=(run,), values=cells, counts=counts[run, series]))
        for (run, series), cells in values.items()
    ]
    rows.sort(key=lambda row: _position(ROLES, row.series.role))
    domains = list(dict.fromkeys(d for row in rows for d in row.values if d != ALL))
    single = len(domains) == 1 and all(
        row.counts.get(domains[0]) == row.counts.get(ALL) for row in rows
    )
    cells = [row.values.get(d, {}) for row in rows for d in (*domains, ALL)]
    return ResultTable(
        dataset=dataset,
        split=split,
        task=task,
        domains=tuple(domains) if single else (*domains, ALL),
        headline=next((m for m in HEADLINES if any(m in cell for cell in cells)), "agreement"),
        rows=tuple(_merge_equal(rows)),
    )


def _with_total(row: Row) -> Row:
    """Add "all" as the image-weighted mean of the domains where nobody measured it.

    Only for metrics that are means over images; a calibration error or a mean per class is not.
    """
    total = sum(row.counts.values())
    if ALL in row.values or not all(row.counts.values()):
        return row
    means = {
        metric: sum(row.value(metric, d) * n for d, n in row.counts.items()) / total
        for metric in ("acc1", "acc5", "agreement", "mean_cosine")
    }
    known = {metric: value for metric, value in means.items() if _finite(value)}
    if len(row.values) == 1:
        known = dict(next(iter(row.values.values())))
    return Row(
        series=row.series,
        runs=row.runs,
        values={**row.values, ALL: known},
        counts={**row.counts, ALL: total},
    )


def _merge_equal(rows: Sequence[Row]) -> list[Row]:
    merged: list[Row] = []
    for row in rows:
        for index, other in enumerate(merged):
            if (row.series, row.values, row.counts) == (other.series, other.values, other.counts):
                merged[index] = Row(
                    series=row.series,
                    runs=(*other.runs, *row.runs),
                    values=row.values,
                    counts=row.counts,
                )
                break
        else:
            merged.append(row)
    return merged


def average_runs(table: ResultTable) -> ResultTable:
    """Join the rows of each series over its runs: one row a series.

    A domain's value is the mean over the runs that measured it; "all" becomes the plain mean
    over the table's domains, and is left out for a series that lacks one of them.
    """
    named = tuple(d for d in table.domains if d != ALL)
    series = dict.fromkeys(row.series for row in table.rows)
    rows = []
    for one in series:
        members = [row for row in table.rows if row.series == one]
        values = {d: _mean_metrics([m.values.get(d, {}) for m in members]) for d in named or (ALL,)}
        values = {d: metrics for d, metrics in values.items() if metrics}
        if named and len(values) == len(named):
            values[ALL] = _mean_metrics(list(values.values()))
        rows.append(
            Row(
                series=one,
                runs=tuple(dict.fromkeys(run for m in members for run in m.runs)),
                values=values,
                counts={d: max(m.counts.get(d, 0) for m in members) for d in values},
            )
        )
    return ResultTable(
        dataset=table.dataset,
        split=table.split,
        task=table.task,
        domains=(*named, ALL) if len(named) != 1 else named,
        headline=table.headline,
        rows=tuple(rows),
        averaged=bool(named),
    )


def _mean_metrics(cells: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average cell by cell the metrics that every non-empty cell has."""
    filled = [cell for cell in cells if cell]
    if not filled:
        return {}
    shared = [metric for metric in filled[0] if all(metric in cell for cell in filled)]
    return {metric: sum(c[metric] for c in filled) / len(filled) for metric in shared}


def task_words(task: str) -> str:
    """ "linear_probe_5_shot" -> "linear probe 5 shot"."""
    return task.replace("_", " ")


def percent(value: float) -> str:
    """0.6634 -> "66.3"; "–" for NaN."""
    return f"{100 * value:.1f}" if _finite(value) else NOTHING


def metric_text(metric: str, value: float) -> str:
    """A cosine with three decimals, everything else in percent."""
    if metric == "mean_cosine":
        return f"{value:.3f}" if _finite(value) else NOTHING
    return percent(value)


def domain_headings(table: ResultTable) -> list[str]:
    """The domains as headings; "all" is called "average" where it is one over domains."""
    return ["average" if d == ALL and table.averaged else d for d in table.domains]


def headings(table: ResultTable) -> list[str]:
    """The headings of the number columns: domains, then the other metrics."""
    return [*domain_headings(table), *(METRICS[metric] for metric in table.metrics)]


def number_cells(table: ResultTable, row: Row) -> list[str]:
    """A row's numbers as text, in the order of `headings`."""
    return [
        *(metric_text(table.headline, row.value(table.headline, d)) for d in table.domains),
        *(_over_all(metric, row, table.task) for metric in table.metrics),
    ]


def _over_all(metric: str, row: Row, task: str) -> str:
    """A metric over all images; a zero-shot calibration error that nobody fitted is "raw"."""
    text = metric_text(metric, row.value(metric))
    zero_shot = metric == "ece" and not task
    raw = zero_shot and row.series.method in _UNTRAINED and text != NOTHING
    return f"{text} (raw)" if raw else text


def three_way_table(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Rows for a terminal: a header, then teacher, student and baseline of every split.

    Accuracies are in percent. A split's rows come together, the split that matters most first;
    a column that a split does not have shows "–". No record at all gives an empty list.
    """
    tables = result_tables(("", record) for record in records)
    if not tables:
        return []
    named = dict.fromkeys(d for table in tables for d in table.domains if d != ALL)
    domains = [*named, *([ALL] if any(ALL in table.domains for table in tables) else [])]
    metrics = [metric for metric in METRICS if any(metric in table.metrics for table in tables)]
    datasets = {table.dataset for table in tables}
    labels = series_labels(row.series for table in tables for row in table.rows)
    rows = [("split", "model", *domains, *(METRICS[metric] for metric in metrics))]
    for table in tables:
        place = table.split + (f" ({table.task})" if table.task else "")
        place = f"{table.dataset}: {place}" if len(datasets) > 1 else place
        for row in table.rows:
            cells = [metric_text(table.headline, row.value(table.headline, d)) for d in domains] + [
                _over_all(metric, row, table.task) for metric in metrics
            ]
            rows.append((place, labels[row.series], *cells))
    return rows


def _position(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
