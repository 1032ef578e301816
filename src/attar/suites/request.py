"""What every suite is given, and what it gives back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from attar.errors import UsageError
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.records import Record
from attar.stages.comparing import Comparison
from attar.stages.opening import place_of_results
from attar.suites.config import SuiteConfig


@dataclass(frozen=True, kw_only=True)
class SuiteRequest:
    """A student, what stands beside it, and where the suite's data are."""

    comparison: Comparison
    """The student, its teacher, its rivals, `--data` where the suite measures on that, and how."""
    options: SuiteConfig
    probe: LinearProbeConfig = field(default_factory=LinearProbeConfig)
    """How `linear-probe` learns."""

    @property
    def out(self) -> Path:
        """The folder of features and results.jsonl: RUN/evaluations/SUITE-DATA by default."""
        asked = self.comparison
        name = "-".join([str(self.options.suite), *(path.name for path in asked.data.data)])
        return asked.out or place_of_results(asked.run) / "evaluations" / name

    @property
    def root(self) -> Path:
        """The folder of the suite's data sets.

        Raises:
            UsageError: none was given, or it is no folder.
        """
        root = self.options.suite_data
        if root is None:
            raise UsageError(
                f"--suite {self.options.suite} needs --suite-data, the folder of its data sets"
            )
        if not root.is_dir():
            raise UsageError(f"--suite-data {root} is not a folder")
        return root


Suite = Callable[[SuiteRequest], Iterator[list[Record]]]
"""Yields the records of one model on the suite, all domains together, as soon as they are known."""
