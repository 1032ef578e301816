"""Turn runs into what the page's template shows: text, figures and rows, nothing computed later."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from markupsafe import Markup

from attar.report import analysis, facts, figures
from attar.report.config import ReportConfig
from attar.report.looks import STYLES, Style, legend_mark
from attar.report.read import Predictions, RunFiles
from attar.report.samples import SampleGroup, sample_groups
from attar.report.tables import (
    ALL,
    HEADLINES,
    ROLES,
    SPLITS,
    ResultTable,
    Row,
    Series,
    average_runs,
    headings,
    number_cells,
    percent,
    task_words,
)

_SET_ASIDE_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A big number at the top of the page."""

    label: str
    value: str
    unit: str
    mark: Markup = field(default_factory=Markup)


@dataclass(frozen=True, kw_only=True)
class TableView:
    """A table of results as text, with its plot."""

    heading: str
    caption: str
    plot: Markup
    columns: list[str]
    num_domains: int
    folded: bool
    """Whether the table waits behind a summary line; a table of averages stands before it."""
    rows: list[tuple[Markup, str, str, list[str]]]
    """(mark, label, model and runs, cells)"""


@dataclass(frozen=True, kw_only=True)
class ModelView:
    """How honest one model's confidence is."""

    label: str
    error: str
    plot: Markup


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What the page shows of one run, apart from the tables."""

    run: RunFiles
    status: str
    curves: list[tuple[str, Markup]]
    speed: str
    predictions_of: str
    confusion: Markup | None
    confusion_is_wide: bool
    """Whether the matrix needs the page's whole width."""
    pairs: list[analysis.ConfusedPair]
    reliability: list[ModelView]
    samples: list[SampleGroup]
    sizes: list[tuple[str, str]]
    bundle: list[tuple[str, str]]
    latency: list[tuple[str, str]]
    conditions: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    set_aside: Sequence[Mapping[str, str]]


def palette() -> str:
    """Return the series' light colours as CSS custom properties."""
    return " ".join(
        f"--{style.variable}:{style.color};" for members in STYLES.values() for style in members
    )


def _mark(style: Style) -> Markup:
    return Markup(legend_mark(style))


def tiles(
    tables: Sequence[ResultTable], runs: Sequence[RunFiles], styles: Mapping[Series, Style]
) -> list[Tile]:
    """Show the overall numbers of a single run's main table, then size and latency."""
    if len(runs) > 1 or not tables:
        return []
    tiles = [
        Tile(
            label=row.series.role + (f" · {row.series.method}" if row.series.method else ""),
            value=percent(row.value(tables[0].headline)),
            unit="%",
            mark=_mark(styles[row.series]),
        )
        for row in tables[0].rows
        if math.isfinite(row.value(tables[0].headline)) and row.series.role in ROLES
    ][:4]
    if runs[0].bundle is not None:
        size, unit = facts.size_text(sum(runs[0].bundle.sizes.values())).split()
        tiles.append(Tile(label="bundle", value=size, unit=unit))
    latency = runs[0].latency.get("median_ms")
    if isinstance(latency, int | float):
        batch = runs[0].latency.get("batch", 1)
        label = "one image" if batch == 1 else f"{batch} images"
        tiles.append(Tile(label=label, value=f"{latency:.1f}", unit="ms"))
    return tiles


def table_views(
    tables: Sequence[ResultTable],
    styles: Mapping[Series, Style],
    labels: Mapping[Series, str],
    num_runs: int,
) -> list[TableView]:
    """Make a table and plot of each split; series in several runs are first averaged."""
    views = []
    several_datasets = len({table.dataset for table in tables}) > 1
    for table in tables:
        repeated = num_runs > 1 and len({row.series for row in table.rows}) < len(table.rows)
        suffix = f" of {table.dataset}" if several_datasets else ""
        heading = SPLITS.get(table.split, table.split).capitalize() + suffix
        heading += f": {task_words(table.task)}" if table.task else ""
        if repeated:
            views.append(
                _table_view(average_runs(table), styles, labels, f"{heading}, averaged by method")
            )
            heading += ", run by run"
        by_run = tuple(sorted(table.rows, key=lambda row: row.runs)) if repeated else table.rows
        view = _table_view(
            replace(table, rows=by_run),
            styles,
            labels,
            heading,
            named_runs=num_runs > 1,
            plotted=not repeated,
        )
        views.append(view)
    return views


def _table_view(
    table: ResultTable,
    styles: Mapping[Series, Style],
    labels: Mapping[Series, str],
    heading: str,
    *,
    named_runs: bool = False,
    plotted: bool = True,
) -> TableView:
    what = HEADLINES[table.headline]
    readings = [
        f"{labels[row.series]} "
        + ", ".join(
            f"{d} {percent(value)} %"
            for d in table.domains
            if math.isfinite(value := row.value(table.headline, d))
        )
        for row in table.rows
    ]
    alt = f"Dot plot of {what} per domain: " + "; ".join(readings)
    counts = {d: max((r.counts.get(d, 0) for r in table.rows), default=0) for d in table.domains}
    if table.averaged:
        counts.pop(ALL, None)
    images = ", ".join(f"{d} {n:,}" for d, n in counts.items() if n)
    caption = f"{what.capitalize()} in percent, by domain."
    caption += f" Images: {images}." if images else ""
    plot = Markup(figures.domain_plot(table, styles, alt)) if plotted else Markup("")
    return TableView(
        heading=heading,
        caption=caption,
        plot=plot,
        columns=headings(table),
        num_domains=len(table.domains),
        folded=not plotted,
        rows=[
            (
                _mark(styles[row.series]),
                labels[row.series],
                _origin(row, named_runs),
                number_cells(table, row),
            )
            for row in table.rows
        ],
    )


def _origin(row: Row, named_runs: bool) -> str:
    """The model where the label does not name it, and the runs where there are several."""
    model = row.series.model if row.series.model not in row.series.label else ""
    runs = ", ".join(row.runs) if len(row.runs) <= 3 else f"{len(row.runs)} runs"
    runs = runs if named_runs else ""
    return " · ".join(part for part in (model, runs) if part)


def run_view(
    run: RunFiles,
    styles: Mapping[Series, Style],
    config: ReportConfig,
) -> RunView:
    """Make everything that the page shows of one run apart from the tables."""
    key = str(run.path)
    spans = analysis.phase_spans(run.metrics)
    split = _prediction_split(run)
    models = {role: table for (role, of), table in run.predictions.items() if of == split}
    student = models.get("student")
    confusion, is_wide = _confusion(student, config, key)
    return RunView(
        run=run,
        status="" if run.finished else "This run has not finished; its numbers may still change.",
        curves=[
            (curve.name, Markup(figures.curve_plot(curve, spans, key)))
            for curve in analysis.training_curves(run.metrics)
        ],
        speed=analysis.throughput(run.metrics),
        predictions_of=SPLITS.get(split, split),
        confusion=confusion,
        confusion_is_wide=is_wide,
        pairs=analysis.confused_pairs(student) if student is not None else [],
        reliability=_reliability(models, styles, key),
        samples=sample_groups(
            student,
            {role: models[role] for role in ("teacher", "baseline") if role in models},
            config,
        )
        if student is not None
        else [],
        sizes=facts.sizes(run),
        bundle=facts.bundle_facts(run),
        latency=facts.latency(run),
        conditions=facts.latency_conditions(run),
        environment=facts.plain_rows(run.environment),
        set_aside=run.set_aside[:_SET_ASIDE_SHOWN],
    )


def _prediction_split(run: RunFiles) -> str:
    """The split whose predictions are shown: the one that matters most, the student's if any."""
    splits = [split for role, split in run.predictions if role == "student"]
    splits = splits or [split for _, split in run.predictions]
    order = list(SPLITS)
    return min(
        splits, key=lambda s: order.index(s) if s in order else len(order), default="test_id"
    )


def _confusion(
    student: Predictions | None, config: ReportConfig, key: str
) -> tuple[Markup | None, bool]:
    """Return the matrix of a labelled student, and whether it is wide."""
    if student is None or not student.labelled:
        return None, False
    counts, names = analysis.confusion(student)
    if not 2 <= len(names) <= config.confusion_classes:
        return None, False
    right = int(counts.trace())
    alt = f"Confusion matrix of {len(names)} classes: {right} of {int(counts.sum())} images right"
    svg = figures.confusion_plot(counts, names, alt, f"confusion {key}")
    return Markup(svg), len(names) > 14


def _reliability(
    models: Mapping[str, Predictions], styles: Mapping[Series, Style], key: str
) -> list[ModelView]:
    by_role: dict[str, Style] = {}
    for series, style in styles.items():
        by_role.setdefault(series.role, style)
    views = []
    for role in ROLES:
        if role not in models or not models[role].labelled:
            continue
        bins = analysis.calibration(models[role])
        style = by_role.get(role, STYLES[role][0])
        alt = f"Reliability diagram of the {role}: calibration error {percent(bins.error)} %. "
        alt += "Accuracy by mean confidence: " + ", ".join(
            f"{100 * a:.0f} % at {100 * c:.0f} %"
            for a, c in zip(bins.accuracy, bins.confidence, strict=True)
            if math.isfinite(a)
        )
        plot = figures.reliability_plot(bins, style, alt, f"reliability {role} {key}")
        views.append(ModelView(label=role, error=percent(bins.error), plot=Markup(plot)))
    return views
