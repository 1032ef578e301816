"""Accuracy against size and latency: which model is worth what it costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import ticker
from matplotlib.axes import Axes

from attar.report.looks import INK, LINE, SURFACE, Style, new_figure, quiet, to_svg

_WIDTH, _HEIGHT = 720, 300
_LONGEST = 22


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model."""

    label: str
    style: Style
    accuracy: float
    """In percent, NaN where it was not measured."""
    num_parameters: float
    """NaN, like the next, where it was not measured."""
    latency_ms: float


def cost_plot(points: Sequence[Point], words: tuple[str, str]) -> str:
    """Draw accuracy over parameters and over latency, both logarithmic, side by side.

    `words` are the title of the accuracy's axis, and a key of its own on the page. Without a model
    of which all is known there is no figure, and the text is empty.
    """
    known = [
        point
        for point in points
        if all(map(math.isfinite, (point.accuracy, point.num_parameters, point.latency_ms)))
    ]
    if not known:
        return ""
    figure = new_figure(_WIDTH, _HEIGHT)
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, known, [point.num_parameters / 1e6 for point in known], "million parameters")
    _panel(right, known, [point.latency_ms for point in known], "ms an image")
    left.set_ylabel(words[0])
    lowest, highest = (f(point.accuracy for point in known) for f in (min, max))
    margin = max(1.5, 0.12 * (highest - lowest))
    left.set_ylim(max(lowest - margin, -2), min(highest + margin, 102))
    return to_svg(figure, _in_words(known), words[1])


def _panel(axes: Axes, points: Sequence[Point], costs: Sequence[float], title: str) -> None:
    quiet(axes)
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.8, max(costs) * 1.8)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(title)
    middle = math.sqrt(min(costs) * max(costs))
    for point, cost in zip(points, costs, strict=True):
        axes.plot(
            cost,
            point.accuracy,
            point.style.marker,
            color=point.style.color,
            markersize=8.5,
            markeredgecolor=SURFACE,
            markeredgewidth=1.2,
        )
        # To the side with more room.
        side = 1 if cost <= middle else -1
        axes.annotate(
            _short(point.label),
            (cost, point.accuracy),
            xytext=(8 * side, 0),
            textcoords="offset points",
            ha="left" if side == 1 else "right",
            va="center",
            color=INK,
            fontsize=9.5,
            parse_math=False,
        )


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"


def _in_words(points: Sequence[Point]) -> str:
    readings = [
        f"{point.label}: {point.accuracy:.1f} % at {point.num_parameters / 1e6:.3g} million "
        f"parameters and {point.latency_ms:.3g} ms"
        for point in points
    ]
    return "Accuracy against parameters and against time for one image: " + "; ".join(readings)
