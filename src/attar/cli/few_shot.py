"""`attar few-shot`: new classes from a few images each."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.bench.config import FewShotConfig
from attar.stages.retrieval_config import RetrievalConfig


def few_shot(
    run: Path,
    *,
    out: Path,
    config: Annotated[FewShotConfig, Parameter(name="*")] = FewShotConfig(),
    training: Annotated[dict[str, str] | None, Parameter(name="--training")] = None,
    retrieval: Annotated[RetrievalConfig, Parameter(name="--retrieval")] = RetrievalConfig(),
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
    training
        Fine-tuning trains as the run did, but for 20 epochs with the sampler `half-few-shot`, the
        schedule `one-cycle` and lr 3e-4; any `--training.` option of `attar distill` may be given.
    """
    from attar.bench.few_shot import run_few_shot

    folder = run_few_shot(run, config, training or {}, retrieval, out)
    print((folder / "table.md").read_text(encoding="utf-8"))
