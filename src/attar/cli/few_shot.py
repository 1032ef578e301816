"""`attar few-shot`: new classes from a few images each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.bench.config import FewShotConfig
from attar.stages.retrieval_config import RetrievalConfig
from attar.training.config import TrainingConfig

_TRAINING = TrainingConfig(
    lr=3e-4, schedule="one-cycle", sampler="half-few-shot", batch_size=64, epochs=20
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FewShotSections:
    """The dotted option groups."""

    training: Annotated[TrainingConfig, Parameter(name="--training")] = field(
        default_factory=lambda: _TRAINING
    )
    retrieval: Annotated[RetrievalConfig, Parameter(name="--retrieval")] = RetrievalConfig()


def few_shot(
    run: Path,
    *,
    out: Path,
    config: Annotated[FewShotConfig, Parameter(name="*")] = FewShotConfig(),
    sections: Annotated[FewShotSections, Parameter(name="*")] = FewShotSections(),
) -> None:
    """Teach a finished run's student its unseen classes from a few images each.

    Measured on the other images of those classes, beside the same student before. Several --seeds
    give mean and deviation over draws of the images.

    For example:

    `attar few-shot runs/flowers --shots 5 --out runs/flowers-5-shot`

    `attar few-shot runs/flowers --how retrieval --retrieval.keys student --seeds 0 --seeds 1
    --seeds 2 --out runs/flowers-retrieval`

    Parameters
    ----------
    run
        A run made by `attar distill` with unseen classes.
    out
        Folder for the runs of the draws, results.jsonl and table.md.
    """
    from attar.bench.few_shot import run_few_shot

    folder = run_few_shot(run, config, sections.training, sections.retrieval, out)
    print((folder / "table.md").read_text(encoding="utf-8"))
