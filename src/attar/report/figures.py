"""Draw the report's figures as inline SVG that follows the page's light or dark theme."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from attar.report.looks import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    SMALL,
    STYLES,
    SURFACE,
    WIDTH,
    Style,
    label_ticks,
    new_axes,
    new_figure,
    quiet,
    shorten,
    to_svg,
)
from attar.report.tables import HEADLINES, ResultTable, Series, domain_headings

DotLine = tuple[str, Sequence[tuple[Series, float]]]
"""A line of a dot plot: its heading, and each series' value (NaN for none)."""


def domain_plot(table: ResultTable, styles: Mapping[Series, Style], alt: str) -> str:
    """Draw one line a domain with a mark for each series' accuracy (or agreement), in percent."""
    lines = [
        (name, [(row.series, 100 * row.value(table.headline, domain)) for row in table.rows])
        for name, domain in zip(domain_headings(table), table.domains, strict=True)
    ]
    figure, axes = new_axes(height=_dots_height(lines))
    _dots(axes, lines, styles)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low - 2, -2), min(high + 2, 102))
    axes.set_xlabel(f"{HEADLINES[table.headline]}, %")
    return to_svg(figure, alt, f"domains {table.dataset} {table.split} {table.task}")


def dot_plot(
    lines: Sequence[DotLine],
    styles: Mapping[Series, Style],
    alt: str,
    key: str,
    *,
    percent: bool = False,
) -> str:
    """Draw one line a heading with a mark for each series' value, from zero on.

    With `percent` the axis is an accuracy and covers what is there instead.
    """
    figure, axes = new_axes(height=_dots_height(lines), width=WIDTH if percent else SMALL)
    _dots(axes, lines, styles)
    low, high = axes.get_xlim()
    if percent:
        axes.set_xlim(max(low - 2, -2), min(high + 2, 102))
        axes.set_xlabel("accuracy, %")
    else:
        axes.set_xlim(-0.05 * high, high)
    return to_svg(figure, alt, key)


def _dots_height(lines: Sequence[DotLine]) -> float:
    series = {one for _, values in lines for one, _ in values}
    return 62 + max(32, 18 + 7 * len(series)) * len(lines)


def _dots(axes: Axes, lines: Sequence[DotLine], styles: Mapping[Series, Style]) -> None:
    """Put a mark at each finite value, the first line at the top."""
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    series = list(dict.fromkeys(one for _, values in lines for one, _ in values))
    # Apart in height too, so that equal numbers do not hide each other.
    offsets = dict(zip(series, np.linspace(-0.25, 0.25, max(len(series), 2)), strict=False))
    for position, (_, values) in enumerate(lines):
        known = [(one, value) for one, value in values if math.isfinite(value)]
        if not known:
            continue
        numbers = [value for _, value in known]
        axes.plot([min(numbers), max(numbers)], [position] * 2, color=LINE, linewidth=1, zorder=1)
        for one, value in known:
            axes.plot(
                value,
                position + offsets[one],
                styles[one].marker,
                color=styles[one].color,
                markersize=8.5,
                markeredgecolor=SURFACE,
                markeredgewidth=1.2,
                zorder=3 if one.role == "student" else 2,
            )
    label_ticks(axes, "y", [shorten(name, 22) for name, _ in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.margins(x=0.06)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)


IntervalLine = tuple[str, Sequence[tuple[Series, float, float, float]]]
"""A line of an interval plot: its heading, and each series' value with its bounds."""


def interval_plot(
    lines: Sequence[IntervalLine],
    styles: Mapping[Series, Style],
    words: tuple[str, str, str],
    band: tuple[float, float] | None = None,
) -> str:
    """Draw one line a heading with a mark and a bar from bound to bound for each series.

    `words` are the axis's title, the text for those who cannot see it, and a key of its own on the
    page. A `band` is shaded, and zero marked: what lies there makes no difference.
    """
    title, alt, key = words
    most = max(len(marks) for _, marks in lines)
    figure, axes = new_axes(height=62 + max(26, 10 + 11 * most) * len(lines))
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    if band is not None:
        axes.axvspan(*band, color=MUTED, alpha=0.12, linewidth=0)
        axes.axvline(0, color=INK, linewidth=1)
    for position, (_, marks) in enumerate(lines):
        offsets = np.linspace(-0.25, 0.25, most) if most > 1 else [0.0]
        for offset, (one, value, low, high) in zip(offsets, marks, strict=False):
            style, height = styles[one], position + float(offset)
            axes.plot([low, high], [height] * 2, color=style.color, linewidth=1.6)
            axes.plot(value, height, style.marker, color=style.color, markersize=7)
    label_ticks(axes, "y", [shorten(name, 22) for name, _ in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(title)
    return to_svg(figure, alt, key)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One number over the optimiser's steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    validation: bool = False


def curve_plot(curve: Curve, phases: Sequence[tuple[str, int, int]], key: str) -> str:
    """Draw a curve over steps, with each (phase, first step, last step) shaded and named.

    A training curve of more than 60 points is drawn faintly, with its running median on top.
    """
    figure, axes = new_axes(height=190, width=SMALL)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    color = STYLES["student"][0].color if curve.validation else ACCENT
    steps, values = np.asarray(curve.steps), np.asarray(curve.values, dtype=np.float64)
    if curve.validation or len(values) <= 60:
        marker = "o" if len(values) <= 25 else ""
        axes.plot(steps, values, color=color, linewidth=1.8, marker=marker, markersize=4)
    else:
        axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.35)
        axes.plot(steps, running_median(values), color=color, linewidth=2)
    for index, (name, first, end) in enumerate(phases):
        if index % 2 == 0:
            axes.axvspan(first, end, color=MUTED, alpha=0.09, linewidth=0)
        if len(phases) > 1:
            axes.text(
                (first + end) / 2,
                1.02,
                shorten(name, 18),
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                color=MUTED,
                parse_math=False,
            )
    axes.margins(x=0.01)
    axes.set_xlabel("step")
    alt = f"{curve.name} over steps: from {values[0]:.4g} to {values[-1]:.4g}, "
    alt += f"lowest {values.min():.4g}, highest {values.max():.4g}"
    return to_svg(figure, alt, f"curve {key} {curve.name}")


def running_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over a centred window of about a twentieth of the curve, shorter at the ends."""
    half = max(2, len(values) // 40)
    return np.array(
        [np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    )


def confusion_plot(counts: NDArray[np.int64], names: Sequence[str], alt: str, key: str) -> str:
    """Draw a confusion matrix [C, C] (row: true class); stronger is a larger share of the row."""
    number = len(names)
    side = max(WIDTH, 150 + 26 * number)
    figure, axes = new_axes(height=side, width=side)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    filled = [(r, c) for r in range(number) for c in range(number) if counts[r, c]]
    rgb = mpl.colors.to_rgb(ACCENT)
    axes.add_collection(
        PatchCollection(
            [Rectangle((c - 0.5, r - 0.5), 1, 1) for r, c in filled],
            facecolors=[(*rgb, 0.06 + 0.94 * share[r, c]) for r, c in filled],
            edgecolors="none",
        )
    )
    for r, c in filled if number <= 12 else []:
        color = SURFACE if share[r, c] > 0.62 else INK
        axes.text(c, r, f"{counts[r, c]}", ha="center", va="center", color=color)
    axes.set_xlim(-0.5, number - 0.5)
    axes.set_ylim(number - 0.5, -0.5)
    axes.set_aspect("equal")
    labels = [shorten(name, 16) for name in names]
    label_ticks(axes, "y", labels)
    label_ticks(axes, "x", labels, rotation=90 if number > 6 else 0)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_ylabel("true class")
    axes.set_xlabel("answer")
    return to_svg(figure, alt, key)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Confidence against accuracy in B equal bins of confidence, over labelled images."""

    edges: NDArray[np.float64]
    """[B + 1] from 0 to 1."""
    confidence: NDArray[np.float64]
    """[B] mean confidence in each bin, NaN in an empty one."""
    accuracy: NDArray[np.float64]
    """[B] share of right answers, NaN in an empty bin."""
    counts: NDArray[np.int64]
    """[B]"""
    error: float
    """The expected calibration error: sum over bins of n_b / N * |accuracy_b - confidence_b|."""


def reliability_plot(calibration: Calibration, style: Style, alt: str, key: str) -> str:
    """Draw accuracy over confidence: bars that meet the diagonal are honest; below, a histogram."""
    figure = new_figure(SMALL, 310)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for one in (axes, below):
        quiet(one)
    width = 1 / len(calibration.counts)
    middles = (calibration.edges[:-1] + calibration.edges[1:]) / 2
    some = calibration.counts > 0
    axes.bar(
        middles[some], calibration.accuracy[some], width=width * 0.86, color=style.color, alpha=0.85
    )
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.plot(
        calibration.confidence[some], calibration.accuracy[some], "o", color=INK, markersize=3.5
    )
    below.bar(middles, calibration.counts, width=width * 0.86, color=MUTED, alpha=0.6)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share right")
    below.set_ylabel("images")
    below.set_xlabel("confidence")
    below.yaxis.set_major_locator(mpl.ticker.MaxNLocator(2, integer=True))
    return to_svg(figure, alt, key)
