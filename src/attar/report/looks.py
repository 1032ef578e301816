"""How the report's figures look: series' marks, quiet axes, and SVG that follows the page's theme.

matplotlib draws with placeholder colours; `to_svg` turns each into a CSS variable of the page,
and keeps text as text. Nothing here touches pyplot or its global state.
"""

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attar.report.tables import ROLES, Series

INK, MUTED, LINE, SURFACE, ACCENT = "#101112", "#606162", "#d8d9da", "#fdfdfc", "#0b5c8e"
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", SURFACE: "surface", ACCENT: "accent"}
WIDTH, SMALL = 400, 340
"""Widths of drawings in CSS pixels, near the size they are shown at, so that text stays legible."""


@dataclass(frozen=True)
class Style:
    """How a series looks everywhere: a CSS variable, its light colour and a marker shape."""

    variable: str
    color: str
    marker: str


_FAMILIES: Mapping[str, Sequence[tuple[str, str]]] = {
    "teacher": (("#0072b2", "D"), ("#3a9bd5", "h"), ("#3454a4", "p")),
    "student": (("#d55e00", "o"), ("#b5457f", "^"), ("#a87400", "v"), ("#7b4fb0", "<")),
    "baseline": (("#6e7072", "s"), ("#009e73", "P"), ("#8a5a3c", "X"), ("#4a7c8c", ">")),
}
"""Okabe and Ito's palette first; shapes differ too, so no reader needs the colours."""

STYLES: Mapping[str, tuple[Style, ...]] = {
    family: tuple(Style(f"{family}-{i}", color, mark) for i, (color, mark) in enumerate(members))
    for family, members in _FAMILIES.items()
}


def series_styles(series: Iterable[Series]) -> dict[Series, Style]:
    """Give each series its look: its role's family, in order of appearance."""
    styles: dict[Series, Style] = {}
    used: dict[str, int] = {}
    for one in dict.fromkeys(series):
        family = one.role if one.role in ROLES else "baseline"
        members = STYLES[family]
        styles[one] = members[used.get(family, 0) % len(members)]
        used[family] = used.get(family, 0) + 1
    return styles


_CORNERS = {
    **{"D": (4, 0), "s": (4, 45), "^": (3, 0), "v": (3, 180), "<": (3, 270), ">": (3, 90)},
    **{"h": (6, 0), "p": (5, 0)},
}
"""marker -> (corners, degrees it is turned)."""


def legend_mark(style: Style) -> str:
    """Return a small inline SVG of a series' mark, for legends and tables."""
    if style.marker in _CORNERS:
        number, turn = _CORNERS[style.marker]
        angles = [math.radians(turn + 360 * i / number - 90) for i in range(number)]
        points = " ".join(
            f"{6 + 5.5 * math.cos(a):.1f},{6 + 5.5 * math.sin(a):.1f}" for a in angles
        )
        shape = f'<polygon points="{points}"/>'
    elif style.marker in "PX":
        spin = ' transform="rotate(45 6 6)"' if style.marker == "X" else ""
        shape = f'<path d="M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z"{spin}/>'
    else:
        shape = '<circle cx="6" cy="6" r="5"/>'
    fill = f"fill:var(--{style.variable})"
    return f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true" style="{fill}">{shape}</svg>'


def to_svg(figure: Figure, alt: str, key: str) -> str:
    """Render a figure for an HTML page: themed, with `alt` as its label and ids of its own.

    `key` must differ between the figures of one page; ids are derived from it.
    """
    prefix = "f" + hashlib.sha256(key.encode()).hexdigest()[:10]
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": prefix}
    buffer = io.StringIO()
    with mpl.rc_context(settings), warnings.catch_warnings():
        # Only the measuring font may lack a glyph; the browser picks one that has it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    width = figure.get_figwidth() * 72
    opening = f'<svg {box.group() if box else ""} role="img" aria-label={quoteattr(alt)}'
    opening += f' style="--width:{width:.0f}px"'
    rest = rest.replace("xlink:href=", "href=")
    rest = re.sub(r'\bid="', f'id="{prefix}-', rest)
    rest = re.sub(r'href="#', f'href="#{prefix}-', rest)
    rest = re.sub(r"url\(#", f"url(#{prefix}-", rest)
    for color, variable in _all_variables().items():
        rest = rest.replace(color, f"var(--{variable})")
    return f"{opening}>{rest}".strip()


def _all_variables() -> dict[str, str]:
    members = (style for family in STYLES.values() for style in family)
    return {**_VARIABLES, **{style.color: style.variable for style in members}}


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many CSS pixels."""
    settings: Any = {"font.size": 11, "font.family": "DejaVu Sans"}
    with mpl.rc_context(settings):
        # 72 points an inch: one point is one CSS pixel.
        return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def new_axes(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Return a figure of so many CSS pixels with one quiet frame."""
    figure = new_figure(width, height)
    axes = figure.subplots()
    quiet(axes)
    return figure, axes


def quiet(axes: Axes) -> None:
    """Quiet frame: no box, muted ticks, grid below the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=MUTED, labelsize=11)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(MUTED)
        axis.label.set_fontsize(11)
        axis.get_offset_text().set_color(MUTED)
    axes.set_axisbelow(True)


def label_ticks(axes: Axes, which: str, names: Sequence[str], rotation: float = 0) -> None:
    """Label ticks with names as they are: "$" or "_" in a class name is no formula."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_ticks(range(len(names)), names, rotation=rotation, parse_math=False)


def shorten(text: str, length: int) -> str:
    """Return a text that is not longer than so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
