"""`attar bench`: grids of runs, resumable, gathered into one table."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from attar.bench.config import ClassesConfig, DomainsConfig
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

    PACS, VLCS, OfficeHome, TerraIncognita and DomainNet are recognised as they are published; any
    other images need folders domain/class/image or a manifest. Each method's learning rate is
    chosen once, on source validation images. Killed and started again, only what is missing runs.

    For example:

    `attar bench domains --data PACS/ --teacher ViT-B-16/openai --student resnet50
    --methods vl2v-adip --methods erm --training.steps 5000 --out runs/pacs`

    `attar bench domains --data office_home/ --teacher ViT-B-16/openai --student resnet50
    --methods erm --variants variants.yaml --seeds 0 --seeds 1 --seeds 2 --jobs 4 --out runs/office`

    Parameters
    ----------
    out
        Folder of the runs and of the store they share.
    teacher
        As in `attar distill`; with {domain} in it, another one for each held-out domain.
    student
        As in `attar distill`.
    results
        Where results.jsonl, table.md, page.html and learning-rates.json go; OUT by default.
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


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ClassesData:
    """Which images, of which classes."""

    data: tuple[Path, ...] = ()
    """Images with labels; without any, the shipped emoji: half of the concepts unseen, Noto held
    out, the Unicode keywords as descriptions."""
    classes: Path | None = None
    """Class list, see `attar distill`."""
    templates: str = DataConfig.templates
    """Prompt templates, see `attar distill`."""
    subset: Literal["all", "odd", "even"] = "all"
    """Only the images whose name's sha256 is odd or even."""

    def config(self) -> DataConfig:
        """Return the same for a run."""
        return DataConfig(
            data=self.data, classes=self.classes, templates=self.templates, subset=self.subset
        )


def classes(
    *,
    out: Path,
    images: ClassesData = ClassesData(),
    teacher: str | None = None,
    student: str = "mobilenetv3_small_100",
    results: Path | None = None,
    grid: Annotated[ClassesConfig, Parameter(name="*")] = ClassesConfig(),
    sections: Annotated[Sections, Parameter(name="*")] = Sections(),
) -> None:
    """Train on some classes, ask about others: the rows of Li et al.'s tables side by side.

    Each row's learning rate is chosen once, on validation images of seen classes. Killed and
    started again, only what is missing runs. Learning rate, seed and tasks are the grid's, whatever
    the options of a single run say.

    For example:

    `attar bench classes --teacher pocket --student tf_efficientnet_lite0
    --student.image-size 96 --training.steps 300 --out runs/concepts`

    `attar bench classes --data manifest.csv --teacher ViT-L-14/openai --student resnet18
    --rows classification --rows classification+image-contrastive --out runs/flowers`

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
    from attar.bench.classes import emoji_data, run_classes

    data, splits = images.config(), sections.splits
    if not images.data:
        data, splits, keywords = emoji_data(out, sections.splits)
        grid = replace(grid, descriptions=grid.descriptions or keywords)
    base = RunConfig(
        data=data,
        teacher=teacher,
        student=student,
        splits=splits,
        student_config=sections.student,
        training=sections.training,
        embed=sections.embed,
        evaluation=sections.evaluation,
    )
    folder = run_classes(base, grid, out, results)
    print((folder / "table.md").read_text(encoding="utf-8"))
