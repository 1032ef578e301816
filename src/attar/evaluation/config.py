"""What a user may set about an evaluation; free of torch so that the CLI starts quickly."""

from dataclasses import dataclass

from attar.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How models are measured."""

    tasks: tuple[str, ...] = ("zero_shot", "fidelity")
    """Tasks to run on stored features: zero_shot, generalised_zero_shot, fidelity, coherence; and
    cost, the parameters, size and latency of each model, which `--compare` always adds."""

    batch_size: int = 64
    """Images in one forward pass."""

    workers: int = 2
    """Processes that read and prepare images; 0 reads in this process."""

    predictions: bool = True
    """Write every image's prediction (predictions/ROLE-SPLIT.parquet) for the report."""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UsageError("evaluation tasks: give at least one")
        for name, least in (("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"evaluation {name} {getattr(self, name)}: give {least} or more")
