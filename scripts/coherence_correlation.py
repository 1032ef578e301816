"""Does coherence with the teacher foretell accuracy on unseen classes (Li et al., ICCV 2023)?

    python scripts/coherence_correlation.py --results docs/results/unseen-classes-emoji

Reads what `attar bench classes` wrote (results.jsonl, and nothing else) and writes beside it
coherence.json, coherence.md and coherence.svg: Spearman's rank correlation, over the rows of the
table, of each coherence metric with the accuracy on unseen classes, in all domains together and in
each held-out one; beside it the same of plain predictors, accuracy on seen classes and mean cosine
with the teacher. Several folders with results of one student are joined; the files go to the first.
"""

import argparse
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from attar.bench.class_table import METRIC
from attar.bench.markdown import NOTHING, markdown
from attar.bench.ranks import (
    EXACT,
    RANDOM_ORDERS,
    RESAMPLES,
    Floats,
    interval,
    least_p,
    permutation_p,
    rank_correlation,
    resampled_correlation,
)
from attar.errors import UsageError
from attar.evaluation.coherence import CLASSES, NEIGHBOURS
from attar.evaluation.coherence import TASK as COHERENCE
from attar.evaluation.fidelity import TASK as FIDELITY
from attar.evaluation.zero_shot import TASK as ZERO_SHOT
from attar.files import atomic_path, write_json, write_text
from attar.records import Record, read_records
from attar.report.figures import ACCENT, INK, LINE, MUTED, new_figure, quiet

Quantity = tuple[str, str, str, str]
"""(task, split, domain, metric): what a record says of one student."""

TRAIN, SEEN, UNSEEN, HELD_OUT = "train", "test_id", "unseen_classes", "held_out"
WORDS = {TRAIN: "training images", SEEN: "seen classes", UNSEEN: "unseen classes"}
LEAST = 3
"""Points below which a rank correlation says nothing."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A number that may foretell the accuracy on unseen classes."""

    name: str
    quantity: Quantity
    sign: float = 1.0
    """-1 where less is better, so that a positive correlation means "the better, the better"."""

    @property
    def title(self) -> str:
        return f"{self.name}, {WORDS[self.quantity[1]]}"


METRICS = (
    ("M_rel ↑", "relative_coherence", 1.0),
    *((f"M_neigh, k={k} ↑", f"neighborhood_overlap@{k}", 1.0) for k in NEIGHBOURS),
    *((f"M_vlalign, k={k} ↓", f"alignment_inversions@{k}", -1.0) for k in CLASSES),
)
"""The paper's metrics: name, metric of the record, sign."""
COHERENT = tuple(
    Predictor(name=name, quantity=(COHERENCE, split, "all", metric), sign=sign)
    for split in (TRAIN, UNSEEN)
    for name, metric, sign in METRICS
)
PLAIN = (
    Predictor(name="accuracy ↑", quantity=(ZERO_SHOT, SEEN, "all", METRIC)),
    Predictor(name="cosine with the teacher ↑", quantity=(FIDELITY, SEEN, "all", "mean_cosine")),
    Predictor(name="cosine with the teacher ↑", quantity=(FIDELITY, UNSEEN, "all", "mean_cosine")),
)
PREDICTORS = (*COHERENT, *PLAIN)
SHOWN = ("M_rel ↑", "M_neigh, k=5 ↑", "M_vlalign, k=3 ↓")
"""The metrics of the picture and of the table of differences: those of the grid's own table."""


@dataclass(frozen=True, kw_only=True)
class Points:
    """N students as points: what may foretell, and what is to be foretold."""

    rows: tuple[str, ...]
    """[N] the row of the table that a student is of; several seeds of a row are several points."""
    predictors: Floats
    """[N, P] in the order of PREDICTORS, as measured."""
    outcomes: Floats
    """[N, O] accuracies."""
    domains: tuple[str, ...]
    """[O] where the accuracy was measured: "all", then each held-out domain."""
    left_out: tuple[str, ...] = ()
    """Rows without some of the numbers, such as a closed set, which cannot name an unseen class."""

    @property
    def turned(self) -> Floats:
        """The predictors [N, P] with those turned round where less is better."""
        return self.predictors * np.array([predictor.sign for predictor in PREDICTORS])

    @property
    def names(self) -> tuple[str, ...]:
        """The rows, each once."""
        return tuple(dict.fromkeys(self.rows))


def read_points(records: Sequence[Record]) -> Points:
    """Return each row and seed as a point.

    Raises:
        UsageError: no student has all the numbers, or there are students of several models, which
            differ in more than their row.
    """
    students = [r for r in records if r.role == "student" and "row" in r.extra]
    models = sorted({record.model for record in students})
    if len(models) > 1:
        raise UsageError(
            f"the results are of several students ({', '.join(models)}): rows of one student are "
            "compared; give the folders of one at a time"
        )
    found: dict[tuple[str, int], dict[Quantity, float]] = defaultdict(dict)
    for record in students:
        said = found[str(record.extra["row"]), int(record.extra["seed"])]
        for metric, value in record.metrics.items():
            said[record.task, record.split, record.domain, metric] = value
    held_out = {r.domain for r in students if r.split == HELD_OUT and r.domain != "all"}
    domains = ("all", *sorted(held_out))
    accuracies = [(ZERO_SHOT, UNSEEN, domain, METRIC) for domain in domains]
    wanted = [*(predictor.quantity for predictor in PREDICTORS), *accuracies]
    whole = {key: said for key, said in found.items() if all(q in said for q in wanted)}
    if not whole:
        raise UsageError(
            "no row has both coherence and accuracy on unseen classes: give --results a folder "
            "that `attar bench classes` wrote results.jsonl to"
        )
    values = np.array([[said[quantity] for quantity in wanted] for said in whole.values()])
    kept = {row for row, _ in whole}
    return Points(
        rows=tuple(row for row, _ in whole),
        predictors=values[:, : len(PREDICTORS)],
        outcomes=values[:, len(PREDICTORS) :],
        domains=domains,
        left_out=tuple(dict.fromkeys(row for row, _ in found if row not in kept)),
    )


def mean_over_seeds(points: Points) -> Points:
    """Return one point a row."""
    members = [np.flatnonzero([row == name for row in points.rows]) for name in points.names]
    return Points(
        rows=points.names,
        predictors=np.stack([points.predictors[rows].mean(axis=0) for rows in members]),
        outcomes=np.stack([points.outcomes[rows].mean(axis=0) for rows in members]),
        domains=points.domains,
        left_out=points.left_out,
    )


def measure(points: Points) -> dict[str, Any]:
    """Return every figure of the tables.

    Raises:
        UsageError: there are too few rows for any.
    """
    rows = mean_over_seeds(points)
    number = len(rows.rows)
    if number < LEAST:
        raise UsageError(
            f"{number} rows ({', '.join(rows.rows)}) are no order to correlate: run "
            f"`attar bench classes` with {LEAST} rows or more"
        )
    over_rows = rank_correlation(rows.turned, rows.outcomes)
    over_seeds = rank_correlation(points.turned, points.outcomes)
    p = permutation_p(rows.turned, rows.outcomes)
    drawn_rows = resampled_correlation(rows.turned, rows.outcomes, rows.rows)
    single = points.rows == rows.rows
    drawn_seeds = (
        drawn_rows if single else resampled_correlation(points.turned, points.outcomes, points.rows)
    )
    correlations = [
        {
            "predictor": predictor.title,
            "metric": predictor.quantity[3],
            "split": predictor.quantity[1],
            "kind": "coherence" if i < len(COHERENT) else "plain",
            "domain": domain,
            "rows": {
                "n": number,
                "rho": _finite(over_rows[i, j]),
                "p": _finite(p[i, j]),
                "interval": interval(drawn_rows[:, i, j]),
            },
            "seeds": {
                "n": len(points.rows),
                "rho": _finite(over_seeds[i, j]),
                "interval": interval(drawn_seeds[:, i, j]),
            },
            "more_than": {
                PREDICTORS[k].title: {
                    "rho": _finite(over_rows[i, j] - over_rows[k, j]),
                    "interval": interval(drawn_rows[:, i, j] - drawn_rows[:, k, j]),
                }
                for k in range(len(COHERENT), len(PREDICTORS))
                if k != i
            },
        }
        for j, domain in enumerate(points.domains)
        for i, predictor in enumerate(PREDICTORS)
    ]
    return {
        "rows": dict(Counter(points.rows)),
        "left_out": list(points.left_out),
        "least_p": least_p(number),
        "correlations": correlations,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def tables(found: dict[str, Any], domains: Sequence[str]) -> str:
    """Return the page: correlations over rows, over seeds where there are several, differences."""
    parts = [
        "# Does coherence foretell accuracy on unseen classes?",
        _table(found, domains, "rows", lambda c: _with_p(c["rows"])),
        _note(found),
    ]
    if any(seeds > 1 for seeds in found["rows"].values()):
        students = sum(found["rows"].values())
        parts += [
            _table(found, domains, "students", lambda c: _with_interval(c["seeds"])),
            f"Each of the {students} students (row and seed) as a point, with the middle 95 % of "
            f"{RESAMPLES:,} draws of *rows*: seeds of one row are no independent evidence.",
        ]
    parts += [
        _difference_table(found, domains),
        "ρ of a coherence metric less ρ of the plain predictor, over rows, with the middle 95 % "
        f"of {RESAMPLES:,} draws of rows. Above 0: coherence foretells better; of few rows the "
        "interval is coarse.",
        "![Accuracy on unseen classes over coherence and over the plain predictors, one point a "
        "row](coherence.svg)",
        "\n".join(
            f"{place}. {row} ({seeds} seed{'s' if seeds > 1 else ''})"
            for place, (row, seeds) in enumerate(found["rows"].items(), 1)
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table(
    found: dict[str, Any], domains: Sequence[str], points: str, text: Callable[[Any], str]
) -> str:
    """Return ρ of each predictor (lines) with each accuracy (columns)."""
    number = len(found["rows"]) if points == "rows" else sum(found["rows"].values())
    head = [f"ρ over {number} {points} with the accuracy on", *map(_accuracy_name, domains)]
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


def _with_p(said: dict[str, Any]) -> str:
    return NOTHING if said["rho"] is None else f"{said['rho']:z.2f} (p {said['p']:.3f})"


def _with_interval(said: dict[str, Any]) -> str:
    if said["rho"] is None or said["interval"] is None:
        return NOTHING
    low, high = said["interval"]
    return f"{said['rho']:z.2f} [{low:z.2f}, {high:z.2f}]"


def _note(found: dict[str, Any]) -> str:
    number, least = len(found["rows"]), found["least_p"]
    kind = "all orders" if number <= EXACT else f"{RANDOM_ORDERS:,} random orders"
    known = [c["rows"]["p"] for c in found["correlations"] if c["rows"]["p"] is not None]
    below = sum(p < 0.05 for p in known)
    few = f"With {number} rows even a perfect order has p = {least:.2g}"
    few += ": nothing here can be significant" if least >= 0.05 else ""
    sentences = [
        "Spearman's ρ, one point a row (mean over its seeds), with the two-sided p of a "
        f"permutation test ({kind}). Metrics where less is better (↓) are turned round: a "
        "positive ρ always means “the more coherent, the more accurate”.",
        f"{few}.",
        f"Of {len(known)} correlations {below} have p below 0.05; by chance alone "
        f"{0.05 * len(known):.0f} would, and they are no independent ones.",
        "Coherence on unseen classes looks at the very images that the accuracy is of, without "
        "their labels; on training images it foretells in earnest.",
    ]
    if found["left_out"]:
        sentences.append(f"Without all of these numbers, left out: {', '.join(found['left_out'])}.")
    return " ".join(sentences)


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
    marks = zip(MARKS, points.domains, strict=False)
    panels.flat[0].legend(
        [mpl.lines.Line2D([], [], linestyle="", **look) for look, _ in marks],
        [_accuracy_name(domain) for domain in points.domains],
        frameon=False,
        fontsize=8,
    )
    with mpl.rc_context({"svg.hashsalt": "coherence"}), atomic_path(file) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


MARKS: tuple[dict[str, Any], ...] = (
    {"marker": "o", "color": ACCENT},
    {"marker": "D", "color": "#d55e00", "markerfacecolor": "none"},
    {"marker": "^", "color": "#009e73", "markerfacecolor": "none"},
    {"marker": "s", "color": MUTED, "markerfacecolor": "none"},
)


def _scatter(axes: Axes, points: Points, place: int) -> None:
    rows = mean_over_seeds(points)
    axes.grid(color=LINE, linewidth=0.8)
    for column, look in zip(range(len(points.domains)), MARKS, strict=False):
        of_seeds = points.predictors[:, place], 100 * points.outcomes[:, column]
        axes.plot(*of_seeds, **look, linestyle="", markersize=3, alpha=0.35)
        of_rows = rows.predictors[:, place], 100 * rows.outcomes[:, column]
        axes.plot(*of_rows, **look, linestyle="", markersize=6)
        for number, spot in enumerate(zip(*of_rows, strict=True), 1):
            axes.annotate(
                str(number), spot, (4, 3), textcoords="offset points", color=INK, fontsize=8
            )
    axes.margins(0.14)
    axes.set_xlabel(PREDICTORS[place].title)
    axes.xaxis.label.set_fontsize(9)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", nargs="+", type=Path, required=True, help="folders with results.jsonl"
    )
    folders = parser.parse_args(words).results
    for folder in folders:
        if not (folder / "results.jsonl").is_file():
            raise UsageError(f"--results {folder} has no results.jsonl: run `attar bench classes`")
    points = read_points([r for f in folders for r in read_records(f / "results.jsonl")])
    found = measure(points)
    page = tables(found, points.domains)
    write_json(folders[0] / "coherence.json", found)
    draw(points, folders[0] / "coherence.svg")
    write_text(folders[0] / "coherence.md", page)
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
