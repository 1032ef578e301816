"""Students kept on the way: at the ends of the last epochs, for results averaged over them."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from attar.students.student import Student, save_student
from attar.training.averaging import Averager, averaged_weights
from attar.training.batchnorm import reestimate_from
from attar.training.feed import Feed

FOLDER = "snapshots"


@dataclass(frozen=True)
class Snapshots:
    """When a student is kept, and where."""

    run_dir: Path
    total_steps: int
    epoch_steps: int
    count: int

    def due(self, step: int) -> bool:
        """Say whether `step` ends one of the last `count` epochs, counted back from the end."""
        epochs, rest = divmod(self.total_steps - step, self.epoch_steps)
        return rest == 0 and epochs < self.count

    def save(self, student: Student, averager: Averager | None, feed: Feed, step: int) -> None:
        """Write the student that would be evaluated now to RUN/snapshots/STEP.

        Averaged weights get BatchNorm statistics of their own, as at the end of a run.
        """
        with averaged_weights(student, averager):
            kept = copy.deepcopy(student)
        if averager is not None:
            reestimate_from(feed, kept, self.total_steps)
        kept.to(memory_format=torch.contiguous_format)
        save_student(kept, self.run_dir / FOLDER / f"{step:08d}")
