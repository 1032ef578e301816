"""What a user may choose about a grid of runs; free of torch so that `--help` is quick."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attar.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DomainsConfig:
    """The grid: methods × held-out domains × seeds, one learning rate a method."""

    methods: tuple[str, ...] = ("vl2v-adip", "feature-mse", "erm")
    """Methods to compare."""
    domains: tuple[str, ...] = ()
    """Domains to hold out in turn; all of them by default."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of training and of the splits."""
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Learning rates each method is tried with; one value skips the choice."""
    lr_domain: str | None = None
    """The domain held out while the learning rate is chosen, on source validation images of the
    first seed; the first domain by default."""
    strict_teacher: str | None = None
    """A teacher that never saw the held-out domain, e.g. "pocket-without:{domain}"; measured
    beside the others."""
    variants: Path | None = None
    """YAML file of further rows, {name: {method: vl2v-adip, training.average: swad}}: a method with
    options other than the grid's; one that sets training.lr is tried with no other rate."""
    jobs: int = 1
    """Cells run at once, each in a process of its own with its share of the cores."""
    oracle: bool = False
    """Also show what choosing among the saved checkpoints (--training.snapshots) by the held-out
    domain itself would give: no result of the protocol, but its upper bound."""

    def __post_init__(self) -> None:
        for name in ("methods", "seeds", "lrs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"--{name} must name at least one value, and none twice")
        for lr in self.lrs:
            if not 0 < lr < math.inf:
                raise UsageError(f"--lrs {lr}: must be above 0")
        _check_jobs(self.jobs)
        if self.strict_teacher is not None:
            self.strict_teacher_of("any")

    def strict_teacher_of(self, domain: str) -> str:
        """Return the teacher that never saw a domain.

        Raises:
            UsageError: it has other braces than {domain}.
        """
        return name_domain(self.strict_teacher or "", domain, "--strict-teacher")


def name_domain(spec: str, domain: str, option: str) -> str:
    """Return a teacher's spec with a domain in the place of {domain}.

    Raises:
        UsageError: it has other braces.
    """
    try:
        return spec.format(domain=domain)
    except (KeyError, IndexError, ValueError) as error:
        raise UsageError(
            f"{option} {spec}: write {{domain}} where the domain's name goes, and no other braces"
        ) from error


def _check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: give 1 or more")


@dataclass(frozen=True, kw_only=True)
class ClassesConfig:
    """The grid of unseen classes: rows of loss terms × seeds, one learning rate a row."""

    rows: tuple[str, ...] = (
        "classification",
        "classification+feature-mse",
        "classification+image-contrastive",
        "classification+image-contrastive+proximity",
        "classification+image-contrastive+proximity+descriptions",
    )
    """Rows of the table: terms joined by "+" (classification, feature-mse, image-contrastive,
    proximity, caption) and what enriches the language (descriptions, prompts), or `closed-set`."""
    methods: tuple[str, ...] = ()
    """Further rows: methods as they come."""
    variants: Path | None = None
    """YAML file of further rows, as for `attar bench domains`."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of training and, without a class list of unseen ones, of the choice of classes."""
    lrs: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    """Learning rates each row is tried with on the first seed; one value skips the choice, which
    is made on validation images of seen classes."""
    descriptions: Path | None = None
    """Class list with descriptions, for the rows that have `descriptions`."""
    jobs: int = 1
    """Cells run at once, each in a process of its own with its share of the cores."""

    def __post_init__(self) -> None:
        for name in ("rows", "methods", "seeds", "lrs"):
            values = getattr(self, name)
            if (not values and name != "methods") or len(set(values)) < len(values):
                raise UsageError(f"--{name} must name at least one value, and none twice")
        _check_jobs(self.jobs)


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """How new classes are learnt from a few images each."""

    how: Literal["finetune", "retrieval"] = "finetune"
    """Go on training from the run's student, or compare with the few images without training."""
    shots: int = 5
    """Labelled images of each new class."""
    seeds: tuple[int, ...] = ()
    """Draw the images by these seeds, one result each; by default the first ones by file name, once
    (Li et al.)."""
    share: float = 1.0
    """Share of the unseen classes that get images; the others are measured as `further_unseen`."""

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise UsageError(f"--shots {self.shots}: give at least 1")
