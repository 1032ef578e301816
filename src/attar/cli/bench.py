"""`attar bench`: grids of runs, resumable, gathered into one table."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.bench.config import DomainsConfig
from attar.cli.distill import Sections
from attar.run import DataConfig, RunConfig


def domains(
    *,
    data: Annotated[DataConfig, Parameter(name="*")],
    out: Path,
    teacher: str | None = None,
    student: str = "mobilenetv3_small_100",
    results: Path | None = None,
    grid: Annotated[DomainsConfig, Parameter(name="*")] = DomainsConfig(),
    sections: Annotated[Sections, Parameter(name="*")] = Sections(),
) -> None:
    """Hold out each domain in turn and compare methods with equal budgets and DomainBed's splits.

    Each method's learning rate is chosen once, on source validation images. Killed and started
    again, only what is missing runs.

    For example:

    `attar bench domains --data PACS/ --teacher ViT-B-16/openai --student resnet50
    --methods vl2v-adip --methods erm --training.steps 5000 --out runs/pacs`

    Parameters
    ----------
    out
        Folder of the runs and of the store they share.
    teacher
        As in `attar distill`.
    student
        As in `attar distill`.
    results
        Where results.jsonl, table.md and learning-rates.json go; OUT by default.
    """
    from attar.bench.domains import run_domains

    base = RunConfig(
        data=data,
        teacher=teacher,
        student=student,
        splits=replace(sections.splits, val_fraction=0.2, test_fraction=0.0),
        protocol="domainbed",
        student_config=sections.student,
        training=replace(sections.training, sampler="per-domain"),
        embed=sections.embed,
        evaluation=sections.evaluation,
    )
    folder = run_domains(base, grid, out, results)
    print((folder / "table.md").read_text(encoding="utf-8"))
