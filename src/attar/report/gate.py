"""The teacher gate's page: verdicts, figures and classes, from its results.jsonl alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from attar import __version__
from attar.errors import AttarError
from attar.files import write_text
from attar.records import Record, read_records
from attar.report import figures, views
from attar.report.looks import Style, legend_mark, series_styles
from attar.report.tables import NOTHING, Series

TEACHER, CLASS = "teacher_gate", "teacher_gate_class"
"""The tasks of the records that the page is made of."""
_SHOWN = 30
"""Classes that a domain's table and picture show at most: the weakest, and all that are lost."""


@dataclass(frozen=True, kw_only=True)
class DomainView:
    """One domain on the page."""

    name: str
    verdict: str
    reason: str
    teacher: Record
    probes: tuple[Record, ...]
    classes: tuple[Record, ...]
    """The weakest first."""
    hidden: int
    """Classes that are not among them."""
    plot: Markup
    """The classes' recalls."""


def write_gate_page(results: Path, out: Path) -> Path:
    """Write the page of a gate's results.jsonl; return its path.

    Raises:
        AttarError: the file holds no verdict.
    """
    records = read_records(results)
    domains = domain_views(records)
    if not domains:
        raise AttarError(f"{results} holds no verdict of a gate; run attar gate again")
    summary = next(r.extra["summary"] for r in records if "summary" in r.extra)
    styles = series_styles(_series(record) for one in domains for record in _rows(one))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    package = resources.files("attar.report")
    css = package.joinpath("style.css").read_text(encoding="utf-8")
    template = environment.from_string(package.joinpath("gate.html.j2").read_text(encoding="utf-8"))
    first = domains[0].teacher
    page = template.render(
        title=f"{first.model} on {first.dataset}",
        summary=summary,
        domains=domains,
        legend=[(Markup(legend_mark(style)), one.role) for one, style in styles.items()],
        accuracies=Markup(_accuracy_plot(domains, styles)),
        differences=Markup(_difference_plot(domains, styles)),
        confidence=f"{100 * first.extra['confidence']:g}",
        margin=f"{100 * first.extra['margin']:g}",
        percent=percent,
        signed=signed,
        probe_name=probe_name,
        css=Markup(css.replace("PALETTE", views.palette())),
        version=__version__,
    )
    write_text(out, page.lstrip())
    return out


def gate_lines(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Rows for a terminal: a header, then each domain's verdict beside its figures, in percent."""
    heading = ("domain", "images", "zero-shot", "probe", "difference", "verdict")
    lines: list[tuple[str, ...]] = [heading]
    for one in domain_views(records, plots=False):
        probe = _strongest(one.probes)
        compared = (NOTHING, NOTHING)
        if probe is not None:
            compared = (percent(probe, "acc1"), signed(probe, "difference"))
        count = f"{one.teacher.num_images:,}"
        lines.append((one.name, count, percent(one.teacher, "acc1"), *compared, one.verdict))
    return lines


def domain_views(records: Iterable[Record], *, plots: bool = True) -> list[DomainView]:
    """Gather the records of each domain, in their order; all domains together come last."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.task in (TEACHER, CLASS):
            found.setdefault(record.domain, []).append(record)
    return [_domain_view(name, of_domain, plots) for name, of_domain in found.items()]


def _domain_view(name: str, records: Sequence[Record], plots: bool) -> DomainView:
    teacher = next(r for r in records if r.task == TEACHER and r.role == "teacher")
    classes = [r for r in records if r.task == CLASS]
    # Lost ones first; recall then sorts.
    classes.sort(key=lambda r: (not r.extra["taken_for"], r.metrics["recall"]))
    lost = sum(bool(r.extra["taken_for"]) for r in classes)
    shown = classes[: max(_SHOWN, lost)]
    return DomainView(
        name=name,
        verdict=teacher.extra["verdict"],
        reason=teacher.extra["reason"],
        teacher=teacher,
        probes=tuple(r for r in records if r.task == TEACHER and r.role == "probe"),
        classes=tuple(shown),
        hidden=len(classes) - len(shown),
        plot=Markup(_class_plot(name, shown) if plots else ""),
    )


def _rows(one: DomainView) -> tuple[Record, ...]:
    return (one.teacher, *one.probes)


def _strongest(probes: Sequence[Record]) -> Record | None:
    deciding = [probe for probe in probes if probe.extra["decides"]]
    return max(deciding, key=lambda probe: probe.metrics["acc1"], default=None)


def _series(record: Record) -> Series:
    if record.role == "teacher":
        return Series("teacher", "", record.model)
    return Series(probe_name(record), "", "")


def probe_name(record: Record) -> str:
    """Return what a probe read and learnt from, in words."""
    whose = "other domains" if record.extra["labels_of"] == "others" else "the same domain"
    return (
        f"probe on {record.extra['features']} features, {record.extra['labels_per_class']} labels "
        f"a class of {whose}"
    )


def percent(record: Record, metric: str) -> str:
    """Return a share in percent, with its bounds where it has them."""
    value = record.metrics[metric]
    low, high = (record.metrics.get(f"{metric}_{end}", math.nan) for end in ("low", "high"))
    bounds = f" ({100 * low:.1f} … {100 * high:.1f})" if math.isfinite(low + high) else ""
    return f"{100 * value:.1f}{bounds}"


def signed(record: Record, metric: str) -> str:
    """Return a difference in points with its bounds, or a dash where there is none."""
    if metric not in record.metrics:
        return NOTHING
    value, low, high = (100 * record.metrics[metric + end] for end in ("", "_low", "_high"))
    return f"{value:+.1f} ({low:+.1f} … {high:+.1f})"


def _accuracy_plot(domains: Sequence[DomainView], styles: dict[Series, Style]) -> str:
    lines: list[figures.IntervalLine] = []
    for one in domains:
        bounds = [(_series(one.teacher), *_bounds(one.teacher, "acc1"))]
        for probe in one.probes:
            value, spread = 100 * probe.metrics["acc1"], 100 * probe.metrics["deviation"]
            bounds.append((_series(probe), value, value - spread, value + spread))
        lines.append((f"{one.name}: {one.verdict}", bounds))
    said = "; ".join(f"{one.name} {percent(one.teacher, 'acc1')}" for one in domains)
    alt = f"Accuracy of zero-shot, beside that of the probes: {said}"
    return figures.interval_plot(lines, styles, ("accuracy, %", alt, "gate accuracy"))


def _difference_plot(domains: Sequence[DomainView], styles: dict[Series, Style]) -> str:
    lines: list[figures.IntervalLine] = []
    said = []
    for one in domains:
        marks = [(_series(probe), *_bounds(probe, "difference")) for probe in one.probes]
        lines.append((f"{one.name}: {one.verdict}", marks))
        said += [f"{one.name} {signed(probe, 'difference')}" for probe in one.probes]
    margin = 100 * domains[0].teacher.extra["margin"]
    alt = f"Zero-shot accuracy minus each probe's, in points: {'; '.join(said)}"
    words = ("zero-shot minus probe, points", alt, "gate difference")
    return figures.interval_plot(lines, styles, words, (-margin, 0))


def _class_plot(domain: str, classes: Sequence[Record]) -> str:
    teacher = Series("teacher", "", classes[0].model)
    lines = []
    for one in classes:
        called = f" → {one.extra['taken_for']}" if one.extra["taken_for"] else ""
        lines.append((f"{one.extra['class']}{called}", [(teacher, *_bounds(one, "recall"))]))
    said = "; ".join(f"{name} {marks[0][1]:.0f}" for name, marks in lines)
    words = ("recall, %", f"Zero-shot recall of each class: {said}", f"gate classes {domain}")
    return figures.interval_plot(lines, series_styles([teacher]), words)


def _bounds(record: Record, metric: str) -> tuple[float, float, float]:
    return (
        100 * record.metrics[metric],
        100 * record.metrics[f"{metric}_low"],
        100 * record.metrics[f"{metric}_high"],
    )
