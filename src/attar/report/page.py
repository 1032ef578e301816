"""Put a report together: result files in, one self-contained HTML page out."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from attar import __version__
from attar.errors import UsageError
from attar.files import check_writable, write_text
from attar.report import views
from attar.report.coherence import coherence_rows, coherence_view
from attar.report.config import ReportConfig
from attar.report.costs import cost_tables, cost_views
from attar.report.looks import series_styles
from attar.report.read import RunFiles, read_runs
from attar.report.several_labels import label_rows, label_view
from attar.report.tables import result_tables, series_labels, with_shared_baseline
from attar.report.verdict import verdict

_ONLY_COHERENCE = "Only the coherence with the teacher was measured; it stands below."
_ONLY_LABELS = "Each label of an image was decided by itself; how well is in the table below."


def write_report(runs: Sequence[Path], out: Path, config: ReportConfig | None = None) -> Path:
    """Write one HTML page about one or several runs, from their result files alone.

    Args:
        runs: run folders.
        out: the page's path; in a folder that exists it becomes `report.html`.
        config: what to show.

    Returns:
        The path of the page.

    Raises:
        UsageError: a folder is not a run, or the page cannot be written there.
    """
    files = read_runs(runs)
    out = out / "report.html" if out.is_dir() else out
    check_writable(out.parent)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{out} should end in .html, or be a folder that exists")
    write_text(out, render(files, config or ReportConfig()))
    return out


def render(runs: Sequence[RunFiles], config: ReportConfig) -> str:
    """Return the page as HTML text; the same files give the same text."""
    named = [(run.name, record) for run in runs for record in run.records]
    named = with_shared_baseline(named)
    tables, coherence = result_tables(named), coherence_rows(named)
    several_labels = label_rows(named)
    series = [row.series for table in tables for row in table.rows]
    series += [row.series for row in coherence]
    series += [row.series for row in several_labels]
    said = verdict(tables, len(runs))
    if not tables and (coherence or several_labels):
        said = _ONLY_LABELS if several_labels else _ONLY_COHERENCE
    styles, labels = series_styles(series), series_labels(series)
    package = resources.files("attar.report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(
        package.joinpath("template.html.j2").read_text(encoding="utf-8")
    )
    css = package.joinpath("style.css").read_text(encoding="utf-8")
    page = template.render(
        title=config.title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs"),
        verdict=said,
        tiles=views.tiles(tables, runs, styles),
        tables=views.table_views(tables, styles, labels, len(runs)),
        costs=cost_views(cost_tables(named, tables), styles, labels),
        coherence=coherence_view(coherence, styles, labels),
        several_labels=label_view(several_labels, styles, labels),
        runs=[views.run_view(run, styles, config) for run in runs],
        css=Markup(css.replace("PALETTE", views.palette())),
        version=__version__,
    )
    return page.lstrip()
