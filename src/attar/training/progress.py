"""What a person sees while training: a bar on a terminal, a plain line now and then elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class TrainingBar:
    """Progress on stderr with phase, loss, images per second, data-wait share and time left."""

    def __init__(self, total_steps: int, start: int, *, silent: bool = False) -> None:
        self._console = Console(stderr=True, quiet=silent, soft_wrap=True)
        self._total, self._start = total_steps, start
        self._began = self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=silent or not self._console.is_terminal,
        )
        self._task = self._progress.add_task(
            "training", total=total_steps, completed=start, numbers=""
        )

    def advance(self, step: int, phase: str) -> None:
        """Show that `step` steps are done."""
        self._progress.update(self._task, completed=step, description=phase)

    def report(self, step: int, phase: str, numbers: dict[str, float]) -> None:
        """Show the numbers of a log line; without a terminal, at most one line in ten seconds."""
        text = (
            f"loss {numbers['loss']:.4f}  {numbers['images_per_s']:,.0f} images/s  "
            f"data wait {numbers['data_wait']:.0%}"
        )
        self._progress.update(self._task, numbers=text)
        now = time.monotonic()
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES or step == self._total
        if self._console.is_terminal or not due:
            return
        self._last_line = now
        left = (now - self._began) / max(1, step - self._start) * (self._total - step)
        self._console.print(
            f"{phase}: step {step}/{self._total}  {text}  {_clock(left)} left",
            highlight=False,
            markup=False,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
