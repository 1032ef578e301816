"""What a user may choose about a suite; free of torch so that `--help` is quick."""

from dataclasses import dataclass
from pathlib import Path

from attar.errors import UsageError

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Which suite, where its data lie, and how much of it is measured."""

    suite: str | None = None
    """Measure a whole suite instead of one data set: imagenet, robustness, elevater,
    clip-benchmark, corruptions or linear-probe."""
    suite_data: Path | None = None
    """Folder that holds the suite's data sets in their published layouts."""
    suite_partial: bool = False
    """Also measure data sets of which only a part is there; their records say so."""
    suite_templates: str | None = None
    """Other prompt templates than the suite's own: a known name, or a file."""
    suite_limit: int | None = None
    """Of corruptions: measure on this many images, drawn with the seed, instead of all."""
    suite_seed: int = 0
    """Of corruptions: decides the noise, and which images --suite-limit keeps."""
    suite_kinds: tuple[str, ...] = ()
    """Of corruptions: only these kinds instead of all 15."""
    suite_severities: tuple[int, ...] = SEVERITIES
    """Of corruptions: which of the severities 1 to 5."""

    def __post_init__(self) -> None:
        if self.suite_limit is not None and self.suite_limit < 1:
            raise UsageError(f"--suite-limit {self.suite_limit}: give 1 image or more")
        severities = self.suite_severities
        if not severities or not set(severities) <= set(SEVERITIES):
            given = " ".join(map(str, severities)) or "nothing"
            raise UsageError(f"--suite-severities {given}: give some of 1 2 3 4 5")
