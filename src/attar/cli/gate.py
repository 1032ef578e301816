"""`attar gate`: is this teacher good enough on this data, before anyone trains?"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.evaluation.gate_config import GateConfig
from attar.run import DataConfig
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Who is judged, on which domains, and where the verdict goes."""

    out: Path
    """Folder for results.jsonl, gate.html and the store."""
    teacher: str | None = None
    """As in `attar distill`; not needed when --store holds everything already."""
    store: Path | None = None
    """Where the teacher's answers are kept, for training to use; OUT/store by default."""
    domains: tuple[str, ...] = field(default=())
    """A domain to judge; may be given several times; all by default. The others give labels."""
    student: str | None = None
    """A backbone whose own features are probed beside the teacher's, before any training."""
    dry_run: bool = False
    """Say what the teacher would cost in queries, money, bytes and time, and ask nothing."""


def gate(
    *,
    data: Annotated[DataConfig, Parameter(name="*")],
    options: GateOptions,
    config: Annotated[GateConfig, Parameter(name="*")] = GateConfig(),
    student: Annotated[StudentConfig, Parameter(name="--student")] = StudentConfig(),
    embed: Annotated[EmbedConfig, Parameter(name="--embed")] = EmbedConfig(),
) -> None:
    """Say whether a teacher is good enough to be distilled on labelled images: go, blend or stop.

    Its zero-shot answers stand against a linear probe that learnt from a few labels, per domain and
    class, with confidence intervals. Nothing is trained; what the teacher said is kept.

    For example:

    `attar gate --data PACS/ --teacher ViT-B-32/openai --out runs/gate`

    `attar gate --data PACS/ --teacher ViT-B-32/openai --domains sketch --labels-per-class 10
    --student tf_efficientnet_lite0 --out runs/gate-sketch`
    """
    from attar.device import prepare_process
    from attar.stages.gate import GateRequest, gate_cost, run_gate

    asked = GateRequest(
        data=data,
        teacher=options.teacher,
        out=options.out,
        store=options.store,
        domains=options.domains,
        student=options.student,
        student_config=student,
        config=config,
        embed=embed,
    )
    prepare_process()
    if options.dry_run:
        print(gate_cost(asked))
        return
    results = run_gate(asked)
    _show(results)
    print(results.with_name("gate.html"))


def _show(results: Path) -> None:
    """Print each domain's verdict as a table, and the whole in words."""
    from rich.console import Console
    from rich.table import Table

    from attar.records import read_records
    from attar.report.gate import gate_lines

    records = read_records(results)
    heading, *rows = gate_lines(records)
    table = Table(title="zero-shot against a probe on a few labels, %", title_justify="left")
    for name in heading:
        table.add_column(name, justify="left" if name in ("domain", "verdict") else "right")
    for row in rows:
        table.add_row(*row)
    # A pipe or a log file has no width of its own; columns must not be cut there.
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    for record in records:
        if "reason" in record.extra:
            print(f"{record.domain}: {record.extra['verdict']}. {record.extra['reason']}")
    print(next(record.extra["summary"] for record in records if "summary" in record.extra))
