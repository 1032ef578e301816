"""The cells of a grid, here one after the other or side by side; a failure stops no other cell."""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from attar import pipeline
from attar.bench.jobs import Task, run_tasks
from attar.bench.progress import Progress
from attar.errors import AttarError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a grid's cells are run, and how they ended so far."""

    jobs: int
    """Cells at once, each in a process of its own; 1 runs them in this one."""
    progress: Progress
    failed: dict[str, str] = field(default_factory=dict)
    """Cell -> what went wrong."""

    def run(self, tasks: Sequence[Task], keep: Callable[[Task], object]) -> None:
        """Run all cells; `keep` what each one found, here and as soon as it is done."""

        def ended(task: Task, error: str) -> None:
            if error:
                self.failed[task.name] = error
                log.error("cell %s failed: %s", task.name, error)
                return
            keep(task)
            self.progress.ended(task.name)

        if self.jobs > 1:
            run_tasks(tasks, self.jobs, ended)
        else:
            for task in tasks:
                ended(task, _run_here(task))

    def refuse_failures(self) -> None:
        """End a grid that could not be finished.

        Raises:
            AttarError: a cell failed; it is named.
        """
        if self.failed:
            name, reason = next(iter(self.failed.items()))
            count = len(self.failed)
            others = f" (and {count - 1} more cells)" if count > 1 else ""
            raise AttarError(
                f"cell {name} failed{others}: {reason}; what does not depend on it is done: remove "
                "the cause, then give the same command again"
            )


def _run_here(task: Task) -> str:
    """Run a cell in this process and return what went wrong."""
    try:
        task.prepare()
        pipeline.distill(task.config, task.run, command=task.command, estimated=False)
    except AttarError as error:
        return str(error)
    except Exception as error:  # as in a process of its own, it stops no other cell
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        return f"{type(error).__name__}: {' '.join(str(error).split())} (log: {task.log})"
    return ""
