"""`attar evaluate`: teacher, student and baselines side by side on any images, or on a suite."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from attar.evaluation.config import EvaluationConfig
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.run import DataConfig
from attar.suites.config import SuiteConfig


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
    """Where results go; `RUN/evaluations/DATA` by default, or under the suite's name."""


def evaluate(
    run: Path,
    /,
    *,
    data: Annotated[DataConfig, Parameter(name="*")] = DataConfig(data=()),
    compared: Compared = Compared(),
    options: Annotated[EvaluationConfig, Parameter(name="*")] = EvaluationConfig(),
    suite: Annotated[SuiteConfig, Parameter(name="*")] = SuiteConfig(),
    probe: Annotated[LinearProbeConfig, Parameter(name="--probe")] = LinearProbeConfig(),
) -> None:
    """Measure a run's student on images that training never saw, beside its teacher.

    Labelled images are classified zero-shot with any class list; unlabelled ones are compared with
    the teacher. With `--suite`, whole collections of data sets are measured by their own metrics
    instead, or what is lost when pictures get worse, or what a linear classifier reads.

    For example:

    `attar evaluate runs/photos --data other-photos/`

    `attar evaluate runs/photos --data sketches/ --classes animals.txt --baseline runs/erm`

    `attar evaluate runs/photos --suite robustness --suite-data sets/ --compare ViT-B-32/openai`

    `attar evaluate runs/photos --suite corruptions --data other-photos/`

    `attar evaluate runs/photos --suite linear-probe --data pets/train --data pets/test`

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
    if suite.suite is None:
        results = pipeline.evaluate(gather(comparison))
    else:
        results = pipeline.evaluate_suite(comparison, suite, probe)
    print_results(results)
    print(results)
