"""How far a grid is, and when it will be over."""

import logging
import time
from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)


class Progress:
    """Counts cells: those whose results were there already, and those run now."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._done: set[str] = set()
        self._run = 0
        self._began = clock()

    def found(self, names: Iterable[str]) -> None:
        """Count cells that need not be run."""
        self._done.update(names)

    def ended(self, name: str) -> None:
        """Say that a cell was run, how many are done, and how long the others will take."""
        self._done.add(name)
        self._run += 1
        log.info("cell %s is done (%s)", name, self.text())

    def text(self) -> str:
        """Return e.g. "3 of 12 cells, about 40 min left"; nothing is promised before the first."""
        left = self._total - len(self._done)
        said = f"{len(self._done)} of {self._total} cells"
        if not self._run or left <= 0:
            return said
        seconds = (self._clock() - self._began) / self._run * left
        return f"{said}, about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
