"""One self-contained HTML page of a grid: the plot, the table, what its columns mean."""

import statistics
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from attar import __version__
from attar.bench import table as tables
from attar.bench.table import DomainsTable, TableRow
from attar.files import write_text
from attar.report import views
from attar.report.figures import dot_plot
from attar.report.looks import STYLES, Style, legend_mark
from attar.report.tables import Series

_MEAN = Series(role="student", method="mean", model="")


def write_page(table: DomainsTable, path: Path, facts: Mapping[str, Any]) -> Path:
    """Write the page, whole or not at all; the same table gives the same text."""
    styles = _styles(table)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = resources.files("attar.bench").joinpath("page.html.j2").read_text(encoding="utf-8")
    css = resources.files("attar.report").joinpath("style.css").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=f"Unseen domains: {', '.join(table.domains)}",
        verdict=verdict(table),
        legend=[(Markup(legend_mark(style)), one.method) for one, style in styles.items()],
        plot=Markup(_plot(table, styles)),
        columns=tables.columns(table),
        num_domains=len(table.domains),
        rows=[(row.name, tables.cells(table, row)) for row in table.rows],
        notes=tables.notes(table, facts),
        variants=tables.variant_notes(table),
        css=Markup(css.replace("PALETTE", views.palette())),
        version=__version__,
    )
    write_text(path, page)
    return path


def verdict(table: DomainsTable) -> str:
    """Say in a sentence or two which row is best and how it compares with `erm`."""
    complete = [row for row in table.rows if not row.repeated and table.whole(row)]
    if not complete:
        return "No method has been measured on every held-out domain yet."
    best = max(complete, key=_mean)
    said = f"Best mean over the held-out domains: {best.name}, {_mean(best):.1f} %."
    reference = table.reference
    difference = None if reference is None else best.minus(reference)
    if difference is not None:
        zero = difference.half_width >= abs(difference.mean)
        said += f" Against {tables.REFERENCE} {difference.text()} points over {difference.cells} "
        said += "cells; the interval includes zero." if zero else "cells."
    return said


def _mean(row: TableRow) -> float:
    return statistics.fmean(list(_by_domain(row).values()))


def _by_domain(row: TableRow) -> dict[str, float]:
    """Return domain -> mean over seeds."""
    values: dict[str, list[float]] = {}
    for (domain, _), value in row.outside.items():
        values.setdefault(domain, []).append(value)
    return {domain: statistics.fmean(of) for domain, of in values.items()}


def _styles(table: DomainsTable) -> dict[Series, Style]:
    """Give the mean the student's look and each domain one of the others."""
    looks = [*STYLES["baseline"], *STYLES["teacher"], *STYLES["student"][1:]]
    series = [Series(role="baseline", method=domain, model="") for domain in table.domains]
    styles = {one: looks[place % len(looks)] for place, one in enumerate(series)}
    return {_MEAN: STYLES["student"][0], **styles}


def _plot(table: DomainsTable, styles: Mapping[Series, Style]) -> str:
    lines = []
    for row in table.rows:
        values = _by_domain(row)
        mean = _mean(row) if table.whole(row) else float("nan")
        found = {one: values.get(one.method, float("nan")) for one in styles} | {_MEAN: mean}
        lines.append((row.name.partition(" (")[0], list(found.items())))
    alt = "Accuracy of each method on each held-out domain; the numbers are in the table below"
    return dot_plot(lines, styles, alt, "domains", percent=True)
