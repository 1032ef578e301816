"""`attar evaluate`: teacher, student and baselines side by side on any images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.evaluation.config import EvaluationConfig
from attar.run import DataConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Compared:
    """What stands beside the student, and where the numbers go."""

    teacher: str | None = None
    """Ask this teacher where the run's store lacks an answer; the run's own teacher by default."""
    baseline: Path | None = None
    """Another run, student or bundle, shown as the baseline."""
    compare: tuple[str, ...] = field(default=())
    """Further models: runs, bundles, or OpenCLIP names; may be given several times."""
    split: str = "test_ood"
    """The name under which these images stand in the results. `train` keeps those that the run
    learnt from, for their coherence; any other name leaves them out."""
    out: Path | None = None
    """Where results go; `RUN/evaluations/DATA` by default."""


def evaluate(
    run: Path,
    /,
    *,
    data: Annotated[DataConfig, Parameter(name="*")],
    compared: Compared = Compared(),
    options: Annotated[EvaluationConfig, Parameter(name="*")] = EvaluationConfig(),
) -> None:
    """Measure a run's student on images that training never saw, beside its teacher.

    Labelled images are classified zero-shot with any class list; unlabelled ones are compared with
    the teacher.

    For example:

    `attar evaluate runs/photos --data other-photos/`

    `attar evaluate runs/photos --data sketches/ --classes animals.txt --baseline runs/erm`

    Parameters
    ----------
    run
        Run folder made by `attar distill`, or a bundle made by `attar export`.
    """
    from attar import pipeline
    from attar.cli.say import print_results
    from attar.stages.comparing import Comparison, gather

    comparison = Comparison(
        run=run,
        data=data,
        teacher=compared.teacher,
        baseline=compared.baseline,
        others=compared.compare,
        split=compared.split,
        out=compared.out,
        config=options,
    )
    results = pipeline.evaluate(gather(comparison))
    print_results(results)
    print(results)
