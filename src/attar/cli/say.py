"""What the commands print."""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from attar.records import read_records


def command_line() -> str:
    """Return the command that was given, quoted so that a shell reads it back."""
    return "attar " + " ".join(shlex.quote(word) for word in sys.argv[1:])


def print_results(results: Path, roles: Iterable[str] = ()) -> None:
    """Print a results.jsonl as the table of teacher, student and baselines per domain.

    Where coherence or several labels an image were measured, their tables follow.
    """
    from rich.console import Console
    from rich.table import Table

    from attar.report.tables import COHERENCE, COST, HEADLINES, MULTI_LABEL, three_way_table

    if not results.is_file():
        print(
            "nothing was measured: all images were trained on, too few a class to keep any back; "
            "`attar evaluate` measures the student on others"
        )
        return
    wanted = set(roles)
    records = [r for r in read_records(results) if not wanted or r.role in wanted]
    what = next((m for m in HEADLINES if any(m in r.metrics for r in records)), "agreement")
    tables = {f"{HEADLINES[what]} in %": three_way_table(records)}
    if any(record.task == COHERENCE for record in records):
        from attar.report.coherence import coherence_lines  # loads matplotlib

        tables["coherence with the teacher"] = coherence_lines(records)
    if any(record.task == MULTI_LABEL for record in records):
        from attar.report.several_labels import label_lines

        tables["several labels an image"] = label_lines(records)
    if any(record.task == COST for record in records):
        from attar.report.costs import cost_lines

        tables["accuracy in %, size and latency"] = cost_lines(records)
    for title, rows in tables.items():
        if not rows:
            continue
        table = Table(title=title, title_justify="left")
        for number, heading in enumerate(rows[0]):
            table.add_column(heading, justify="left" if number < 2 else "right")
        for row in rows[1:]:
            table.add_row(*row)
        # A pipe or a log file has no width of its own; columns must not be cut there.
        Console(width=None if sys.stdout.isatty() else 180).print(table)
