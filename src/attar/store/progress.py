"""A progress bar on stderr: items a second, time left, and the share of time spent waiting."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


class Meter:
    """Counts work done and time waited for data; shows both while they grow."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.done = 0
        self._unit = unit
        self._waited = 0.0
        self._start = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=os.environ.get("RANK", "0") != "0",
        )
        self._task = self._bar.add_task(label, total=total, rate="")

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    @property
    def rate(self) -> float:
        """Items a second since the start."""
        return self.done / max(time.perf_counter() - self._start, 1e-9)

    @property
    def data_wait(self) -> float:
        """Share of the time, 0 to 1, in which the work stood still for want of data."""
        return self._waited / max(time.perf_counter() - self._start, 1e-9)

    @property
    def summary(self) -> str:
        """One line for a log."""
        return f"{self.rate:,.1f} {self._unit}/s, data wait {self.data_wait:.0%}"

    def waiting_for(self, source: Iterable[Item]) -> Iterator[Item]:
        """Yield from `source`, counting the time that each item takes to arrive as waiting."""
        iterator = iter(source)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - asked
            yield item

    def advance(self, count: int) -> None:
        """Count `count` more items as done."""
        self.done += count
        self._bar.update(self._task, advance=count, rate=self.summary)


def say(line: str) -> None:
    """Print one plain line for a person on stderr."""
    Console(file=sys.stderr).print(line, markup=False, highlight=False, soft_wrap=True)
