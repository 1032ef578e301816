"""What a user may choose about a grid of runs; free of torch so that `--help` is quick."""

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        for name in ("methods", "seeds", "lrs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UsageError(f"--{name} must name at least one value, and none twice")
