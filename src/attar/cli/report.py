"""`attar report`: one page from result files alone."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.report.config import ReportConfig


def report(
    runs: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    out: Path | None = None,
    options: Annotated[ReportConfig, Parameter(name="*")] = ReportConfig(),
) -> None:
    """Make one self-contained HTML page of one run, or of several side by side.

    For example:

    `attar report runs/photos`

    `attar report runs/vl2v runs/erm --out comparison.html --no-thumbnails`

    Parameters
    ----------
    runs
        Run folders made by `attar distill`.
    out
        The page; by default `report.html` in the first run.
    """
    from attar.report.page import write_report

    print(write_report(runs, out or runs[0] / "report.html", options))
