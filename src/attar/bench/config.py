"""What a user may choose about a grid of runs; free of torch so that `--help` is quick."""

import math
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
        for lr in self.lrs:
            if not 0 < lr < math.inf:
                raise UsageError(f"--lrs {lr}: must be above 0")
        if self.strict_teacher is not None:
            self.strict_teacher_of("any")

    def strict_teacher_of(self, domain: str) -> str:
        """Return the teacher that never saw a domain.

        Raises:
            UsageError: there is another placeholder than {domain} in it.
        """
        try:
            return (self.strict_teacher or "").format(domain=domain)
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"--strict-teacher {self.strict_teacher}: write {{domain}} where the domain's name "
                "goes, and no other braces"
            ) from error
