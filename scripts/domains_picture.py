"""The README's picture: accuracy on each unseen domain, drawn from the results of a grid.

    python scripts/domains_picture.py --results docs/results/unseen-domains-pacs \
        --rows erm feature-mse vl2v-adip attar-2026-11-23 --out docs/unseen-domains.svg

Reads what `attar bench domains` wrote (results.jsonl, and nothing else). A panel a held-out domain
and one for their mean: each row's mean over seeds is a tick, its seeds are dots; the
lines are the teacher and the teacher that never saw the domain. The file says which results it was
drawn from, by their sha256, so that a picture of older results can be told.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from attar.bench.table import DomainsTable, TableRow, Values, read_table
from attar.errors import UsageError, unknown_name
from attar.files import atomic_path, sha256_file
from attar.records import read_records
from attar.report.looks import INK, LINE, MUTED, STYLES, label_ticks, new_figure, quiet

MEAN = "mean of the domains"
TEACHER, STRICT = STYLES["teacher"][0].color, STYLES["teacher"][1].color
LINES = {"teacher": (TEACHER, "-"), "strict teacher": (STRICT, (0, (4, 3)))}
"""Role -> colour and dashes."""


def draw(table: DomainsTable, names: Sequence[str], file: Path, source: str) -> Path:
    """Write the picture as SVG with its text as text.

    Raises:
        UsageError: a row that the results lack, or that has not been measured on every domain.
    """
    rows = [_row(table, name) for name in names]
    lines = [row for row in table.rows if row.role in LINES]
    height = 130 + 40 * len(rows)
    figure = new_figure(1000, height)
    figure.get_layout_engine().set(w_pad=0.12)
    panels = figure.subplots(1, len(table.domains) + 1, sharey=True, sharex=True)
    for axes, domain in zip(panels, (*table.domains, MEAN), strict=True):
        quiet(axes)
        axes.set_title(domain.replace("_", " "), fontsize=13, color=INK)
        axes.grid(axis="x", color=LINE, linewidth=0.8)
        for row in lines:
            color, dashes = LINES[row.role]
            axes.axvline(_mean(row, domain), color=color, linestyle=dashes, linewidth=1.6)
        for place, row in enumerate(rows):
            _mark(axes, row, domain, place)
    label_ticks(panels[0], "y", names)
    panels[0].set_ylim(len(rows) - 0.6, -0.8)
    panels[0].tick_params(axis="y", length=0, labelcolor=INK)
    figure.supxlabel("top-1 on the domain that training never saw, %", fontsize=11, color=MUTED)
    figure.legend(handles=_legend(table), loc="outside upper left", ncols=4, frameon=False)
    settings = {"svg.hashsalt": "domains", "svg.fonttype": "none"}
    facts = {"Date": None, "Source": source, "Title": "Accuracy on domains never trained on"}
    with mpl.rc_context(settings), atomic_path(file) as temporary:
        figure.savefig(temporary, format="svg", metadata=facts, facecolor="white")
    return file


def source_of(results: Path) -> str:
    """Return what tells these results from others."""
    return f"results.jsonl sha256 {sha256_file(results / 'results.jsonl')}"


def _row(table: DomainsTable, name: str) -> TableRow:
    rows = {row.name: row for row in table.rows if row.role == "student"}
    if name not in rows:
        raise unknown_name("row", name, rows)
    if not table.whole(rows[name]):
        raise UsageError(f"row {name} has not been measured on every held-out domain yet")
    return rows[name]


def _mark(axes: Axes, row: TableRow, domain: str, place: int) -> None:
    """Draw a row's seeds small and its mean large, with the number beside it."""
    color, mean = STYLES["student"][0].color, _mean(row, domain)
    seeds = _of_seeds(row, domain)
    axes.plot(seeds, [place] * len(seeds), "o", color=color, markersize=5, alpha=0.45, zorder=3)
    axes.plot(mean, place, "|", color=color, markersize=15, markeredgewidth=3, zorder=4)
    axes.annotate(
        f"{mean:.1f}",
        (mean, place),
        (0, 11),
        textcoords="offset points",
        ha="center",
        fontsize=11,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )


def _of_seeds(row: TableRow, domain: str) -> list[float]:
    """Return a row's values on a domain, or their means over domains, a value a seed."""
    if domain != MEAN:
        return [value for (name, _), value in row.outside.items() if name == domain]
    by_seed: dict[int, list[float]] = {}
    for (_, seed), value in row.outside.items():
        by_seed.setdefault(seed, []).append(value)
    most = max(map(len, by_seed.values()))
    return [statistics.fmean(values) for values in by_seed.values() if len(values) == most]


def _mean(row: TableRow, domain: str) -> float:
    """Return the mean over seeds; over domains each counts once, whatever its seeds."""
    if domain != MEAN:
        return statistics.fmean(_of_seeds(row, domain))
    return statistics.fmean(_mean(row, name) for name in _domains(row.outside))


def _domains(values: Values) -> list[str]:
    return sorted({domain for domain, _ in values})


def _legend(table: DomainsTable) -> list[Line2D]:
    student = STYLES["student"][0].color
    marks = [
        Line2D([], [], marker="|", linestyle="", color=student, markersize=15, markeredgewidth=3),
        Line2D([], [], marker="o", linestyle="", color=student, markersize=5, alpha=0.45),
    ]
    for mark, label in zip(marks, ("student, mean over seeds", "one seed"), strict=True):
        mark.set_label(label)
    roles = {row.role: row.name for row in table.rows if row.role in LINES}
    for role, name in roles.items():
        color, dashes = LINES[role]
        marks.append(Line2D([], [], color=color, linestyle=dashes, label=name))
    return marks


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="folder with results.jsonl")
    parser.add_argument("--rows", nargs="+", required=True, help="names of the table's rows")
    parser.add_argument("--out", type=Path, required=True, help="the SVG to write")
    options = parser.parse_args(words)
    if not (options.results / "results.jsonl").is_file():
        raise UsageError(
            f"--results {options.results} has no results.jsonl: run `attar bench domains`"
        )
    table = read_table(read_records(options.results / "results.jsonl"))
    file = draw(table, options.rows, options.out, source_of(options.results))
    sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
