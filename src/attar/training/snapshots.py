"""Students kept on the way: at the ends of the last epochs, for results averaged over them."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from attar.students.student import Student, save_student
from attar.training.averaging import Averager, averaged_weights

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

    def save(self, student: Student, averager: Averager | None, step: int) -> None:
        """Write the weights that would be evaluated now to RUN/snapshots/STEP."""
        with averaged_weights(student, averager):
            kept = copy.deepcopy(student).to(memory_format=torch.contiguous_format)
        save_student(kept, self.run_dir / FOLDER / f"{step:08d}")
