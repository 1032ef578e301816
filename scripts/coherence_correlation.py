"""Does coherence with the teacher foretell accuracy on unseen classes (Li et al., ICCV 2023)?

    python scripts/coherence_correlation.py --results docs/results/unseen-classes-emoji

Reads what `attar bench classes` wrote (results.jsonl, and nothing else) and writes beside it
coherence.json, coherence.md and coherence.svg: Spearman's rank correlation, over the rows of the
table, of each coherence metric with the accuracy on unseen classes, in all domains together and in
each held-out one; beside it the same of plain predictors, accuracy on seen classes and mean cosine
with the teacher. Several folders with results of one student are joined, over the seeds that all
rows have; the files go to the first.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from attar.bench.coherence_points import (
    COHERENT,
    PLAIN,
    PREDICTORS,
    UNSEEN,
    WORDS,
    Points,
    read_points,
)
from attar.bench.markdown import NOTHING, markdown
from attar.bench.ranks import (
    EXACT,
    LEAST_RESAMPLED,
    RANDOM_ORDERS,
    RESAMPLES,
    Floats,
    chance_below,
    interval,
    least_p,
    permutation_p,
    rank_correlation,
    resampled_correlation,
)
from attar.errors import UsageError
from attar.files import atomic_path, write_json, write_text
from attar.records import Record, read_records
from attar.report.looks import ACCENT, INK, LINE, MUTED, new_figure, quiet

LEAST = 3
"""Rows below which a rank correlation says nothing."""
SHOWN = ("M_rel ↑", "M_neigh, k=5 ↑", "M_vlalign, k=3 ↓")
"""The metrics of the picture and of the table of differences: those of the grid's own table."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Correlations of predictors with accuracies, and how they vary with the draw of rows."""

    rho: Floats
    """[P, O]"""
    drawn: Floats
    """[D, P, O] ρ of each draw; D = 0 where the rows are too few to draw from."""

    def of(self, i: int, j: int) -> dict[str, Any]:
        """Return ρ of predictor i with accuracy j."""
        return {"rho": _finite(self.rho[i, j]), "interval": interval(self.drawn[:, i, j])}

    def difference(self, i: int, k: int, j: int) -> dict[str, Any]:
        """Return ρ of predictor i less that of k, both with accuracy j and over the same draws."""
        return {
            "rho": _finite(self.rho[i, j] - self.rho[k, j]),
            "interval": interval(self.drawn[:, i, j] - self.drawn[:, k, j]),
        }


def over_rows(predictors: Floats, outcomes: Floats) -> Estimate:
    """Return ρ over R rows of predictors [R, P] and outcomes [R, O]."""
    return Estimate(
        rho=rank_correlation(predictors, outcomes),
        drawn=resampled_correlation(predictors, outcomes),
    )


def within_seeds(points: Points) -> Estimate:
    """Return the mean over seeds of ρ over the rows of one seed.

    Never over students of several seeds together: each seed has its own unseen classes, some
    harder than others. All seeds draw the same rows, since seeds of a row resemble each other.
    """
    estimates = [
        over_rows(predictors, outcomes)
        for predictors, outcomes in zip(points.turned, points.outcomes, strict=True)
    ]
    return Estimate(
        rho=np.mean([one.rho for one in estimates], axis=0),
        drawn=np.mean([one.drawn for one in estimates], axis=0),
    )


def measure(points: Points) -> dict[str, Any]:
    """Return every figure of the tables.

    Raises:
        UsageError: there are too few rows for any.
    """
    number = len(points.rows)
    if number < LEAST:
        raise UsageError(
            f"{number} rows ({', '.join(points.rows)}) are no order to correlate: run "
            f"`attar bench classes` with {LEAST} rows or more"
        )
    predictors, outcomes = points.turned.mean(axis=0), points.outcomes.mean(axis=0)
    rows = over_rows(predictors, outcomes)
    seeds = within_seeds(points) if len(points.seeds) > 1 else rows
    p = permutation_p(predictors, outcomes)
    return {
        "rows": list(points.rows),
        "rows_left_out": list(points.rows_left_out),
        "seeds": list(points.seeds),
        "seeds_left_out": list(points.seeds_left_out),
        "least_p": least_p(number),
        "correlations": [
            {
                **_names(i, domain),
                "over_rows": {**rows.of(i, j), "p": _finite(p[i, j])},
                "within_seeds": seeds.of(i, j),
                "more_than": _more_than(rows, i, j),
            }
            for j, domain in enumerate(points.domains)
            for i in range(len(PREDICTORS))
        ],
    }


def _names(i: int, domain: str) -> dict[str, str]:
    """Return which correlation it is: of predictor i with the accuracy in a domain."""
    predictor = PREDICTORS[i]
    _, split, _, metric = predictor.quantity
    kind = "coherence" if predictor in COHERENT else "plain"
    names = {"predictor": predictor.title, "metric": metric, "split": split}
    return {**names, "kind": kind, "domain": domain}


def _more_than(rows: Estimate, i: int, j: int) -> dict[str, Any]:
    """Return by how much predictor i foretells accuracy j better than each other plain one."""
    plain = range(len(COHERENT), len(PREDICTORS))
    return {PREDICTORS[k].title: rows.difference(i, k, j) for k in plain if k != i}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def tables(found: dict[str, Any], domains: Sequence[str]) -> str:
    """Return the page: correlations over rows, within seeds if there are several, differences."""
    over = f"over {len(found['rows'])} rows"
    drawn = _drawn_note(len(found["rows"]))
    parts = [
        "# Does coherence foretell accuracy on unseen classes?",
        _table(found, domains, f"ρ {over}", lambda c: _with_p(c["over_rows"])),
        _note(found),
    ]
    if (number := len(found["seeds"])) > 1:
        name = f"mean of {number} seeds' ρ {over}"
        parts += [
            _table(found, domains, name, lambda c: _with_interval(c["within_seeds"])),
            "ρ over the students of one seed, averaged over seeds: a seed draws the unseen classes "
            f"too, so students of different seeds are never ranked together. {drawn}",
        ]
    parts += [
        _difference_table(found, domains),
        "ρ of a coherence metric less ρ of the plain predictor, over rows. Above 0: coherence "
        f"foretells better. {drawn}",
        "![Accuracy on unseen classes over coherence and over the plain predictors, one point a "
        "row](coherence.svg)",
        "\n".join(f"{place}. {row}" for place, row in enumerate(found["rows"], 1)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(
    found: dict[str, Any], domains: Sequence[str], name: str, text: Callable[[Any], str]
) -> str:
    """Return ρ of each predictor (lines) with each accuracy (columns)."""
    head = [f"{name} with the accuracy on", *map(_accuracy_name, domains)]
    body = []
    for predictor in PREDICTORS:
        of = [c for c in found["correlations"] if c["predictor"] == predictor.title]
        body.append([predictor.title, *(text(correlation) for correlation in of)])
    return markdown(head, body)


def _difference_table(found: dict[str, Any], domains: Sequence[str]) -> str:
    """Return, for each coherence metric and accuracy, how much better it foretells than others."""
    plain = [predictor.title for predictor in PLAIN]
    head = ["ρ less that of", *(f"{_accuracy_name(d)}: {name}" for d in domains for name in plain)]
    body = []
    for predictor in (p for p in COHERENT if p.name in SHOWN):
        of = [c for c in found["correlations"] if c["predictor"] == predictor.title]
        texts = [_with_interval(c["more_than"][name]) for c in of for name in plain]
        body.append([predictor.title, *texts])
    return markdown(head, body)


def _accuracy_name(domain: str) -> str:
    return WORDS[UNSEEN] if domain == "all" else f"{WORDS[UNSEEN]}: {domain}"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _with_p(said: dict[str, Any]) -> str:
    return NOTHING if said["rho"] is None else f"{said['rho']:z.2f} ({_p(said['p'])})"


def _with_interval(said: dict[str, Any]) -> str:
    if said["rho"] is None:
        return NOTHING
    if said["interval"] is None:
        return f"{said['rho']:z.2f}"
    low, high = said["interval"]
    return f"{said['rho']:z.2f} [{low:z.2f}, {high:z.2f}]"


def _drawn_note(rows: int) -> str:
    """Say what the intervals are, or why there are none."""
    if rows < LEAST_RESAMPLED:
        return f"No intervals: {rows} rows are too few to resample (from {LEAST_RESAMPLED} on)."
    return (
        f"In brackets the middle 95 % of {RESAMPLES:,} draws of rows with replacement: a rough "
        "interval, since a row drawn twice agrees with itself, which pulls ρ outwards."
    )


def _note(found: dict[str, Any]) -> str:
    number, least = len(found["rows"]), found["least_p"]
    kind = "all orders" if number <= EXACT else f"{RANDOM_ORDERS:,} random orders and the observed"
    known = [c["over_rows"]["p"] for c in found["correlations"]]
    known = [p for p in known if p is not None]
    below = sum(p < 0.05 for p in known)
    few = f"With {number} rows even a perfect order has {_p(least)}"
    few += ": nothing here can be significant" if least >= 0.05 else ""
    sentences = [
        f"Spearman's ρ, one point a row ({_seeds_note(found)}), with the two-sided p of a "
        f"permutation test ({kind}). Metrics where less is better (↓) are turned round: a "
        "positive ρ always means “the more coherent, the more accurate”.",
        f"{few}.",
        f"Of {len(known)} correlations {below} have p below 0.05; by chance alone "
        f"{chance_below(0.05, number) * len(known):.2g} would, and they are no independent ones.",
        "Coherence on unseen classes looks at the very images that the accuracy is of, without "
        "their labels; on training images it foretells in earnest.",
    ]
    if found["rows_left_out"]:
        rows = ", ".join(found["rows_left_out"])
        sentences.append(f"Without all of these numbers, left out: {rows}.")
    return " ".join(sentences)


def _seeds_note(found: dict[str, Any]) -> str:
    """Say which seeds each row has been averaged over, and which only some rows have."""
    seeds = ", ".join(map(str, found["seeds"]))
    words = f"mean over seeds {seeds}" if len(found["seeds"]) > 1 else f"seed {seeds}"
    if not found["seeds_left_out"]:
        return words
    others = ", ".join(map(str, found["seeds_left_out"]))
    return f"{words}, which all rows have; not used, since some row lacks it: seed {others}"


def draw(points: Points, file: Path) -> None:
    """Draw the accuracy over a choice of predictors, one number a row, one panel a predictor."""
    coherent = [place for place, predictor in enumerate(COHERENT) if predictor.name in SHOWN]
    accuracy, cosine, _ = range(len(COHERENT), len(PREDICTORS))
    chosen = [*coherent[:3], accuracy, *coherent[3:], cosine]  # one line a split
    figure = new_figure(960, 460)
    panels = figure.subplots(2, 4, sharey=True)
    for axes, place in zip(panels.flat, chosen, strict=True):
        quiet(axes)
        _scatter(axes, points, place)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy, unseen, %")
    panels.flat[0].legend(
        [mpl.lines.Line2D([], [], linestyle="", **look) for look in _looks(points.domains)],
        [_accuracy_name(domain) for domain in points.domains],
        frameon=False,
        fontsize=8,
    )
    with mpl.rc_context({"svg.hashsalt": "coherence"}), atomic_path(file) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


MARKERS = ("o", "D", "^", "s")
COLOURS = (ACCENT, "#d55e00", "#009e73", MUTED, "#cc79a7")


def _looks(domains: Sequence[str]) -> list[dict[str, Any]]:
    """Return how to draw each domain; markers and colours come round after different lengths."""
    cycled = zip(itertools.cycle(MARKERS), itertools.cycle(COLOURS), domains)
    return [
        {"marker": marker, "color": color, "markerfacecolor": color if domain == "all" else "none"}
        for marker, color, domain in cycled
    ]


def _scatter(axes: Axes, points: Points, place: int) -> None:
    """Draw each row large and numbered, its students small behind it where there are several."""
    predictor, outcomes = points.predictors[..., place], 100 * points.outcomes
    axes.grid(color=LINE, linewidth=0.8)
    for column, look in enumerate(_looks(points.domains)):
        accuracy = outcomes[..., column]
        axes.plot(
            predictor.ravel(), accuracy.ravel(), **look, linestyle="", markersize=3, alpha=0.35
        )
        of_rows = predictor.mean(axis=0), accuracy.mean(axis=0)
        axes.plot(*of_rows, **look, linestyle="", markersize=6)
        for number, spot in enumerate(zip(*of_rows, strict=True), 1):
            axes.annotate(
                str(number), spot, (4, 3), textcoords="offset points", color=INK, fontsize=8
            )
    axes.margins(0.14)
    axes.set_xlabel(PREDICTORS[place].title)
    axes.xaxis.label.set_fontsize(9)


def _under_one_name(record: Record, names: Sequence[str]) -> Record:
    return replace(record, dataset=names[0]) if record.dataset in names else record


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", nargs="+", type=Path, required=True, help="folders with results.jsonl"
    )
    parser.add_argument(
        "--same-images",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names that the same images go by, such as a folder's and a manifest's of it",
    )
    options = parser.parse_args(words)
    folders = options.results
    for folder in folders:
        if not (folder / "results.jsonl").is_file():
            raise UsageError(f"--results {folder} has no results.jsonl: run `attar bench classes`")
    records = [r for f in folders for r in read_records(f / "results.jsonl")]
    points = read_points([_under_one_name(record, options.same_images) for record in records])
    found = measure(points)
    page = tables(found, points.domains)
    write_json(folders[0] / "coherence.json", found)
    draw(points, folders[0] / "coherence.svg")
    write_text(folders[0] / "coherence.md", page)
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
