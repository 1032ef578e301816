"""metrics.jsonl and TensorBoard: the same numbers, by step, without a step twice after a resume."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from attar.files import write_text
from attar.types import Loss

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes numbers of a step to `run_dir/metrics.jsonl` and `run_dir/tensorboard`.

    Opened at the step a run goes on from: whatever a killed run wrote beyond it is dropped.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        path = run_dir / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._kept = keep_until(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(run_dir / "tensorboard", purge_step=step + 1)

    def write(
        self, step: int, phase: str, split: str, seconds: float, values: Mapping[str, float]
    ) -> None:
        """Write one line; `step` counts finished optimiser steps, `seconds` is training time.

        One that stands there already is left: a run killed in the middle of what a phase begins
        with does that again. TensorBoard, which may have lost it, is told once more.
        """
        if (step, phase, split) not in self._kept:
            said = {"step": step, "phase": phase, "split": split, "time": round(seconds, 3)}
            self._file.write(json.dumps({**said, **values}) + "\n")
            self._file.flush()
        for name, value in values.items():
            tag = name if "/" in name else f"{split}/{name}"
            self._board.add_scalar(tag, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()


def keep_until(path: Path, step: int) -> set[tuple[int, str, str]]:
    """Drop the lines of a metrics file beyond `step`, and a line cut short by a crash.

    Returns step, phase and split of those that are left.
    """
    if not path.exists():
        return set()
    kept = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            said = json.loads(line)
            if said["step"] <= step:
                kept[said["step"], said["phase"], said["split"]] = line + "\n"
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept.values()))
    return set(kept)


class Meter:
    """Means since the last line of the log: loss, terms, speed and the share of waiting for data.

    The sums of losses survive a resume; the clock begins anew.
    """

    def __init__(self, state: Mapping[str, tuple[float, int]] | None = None) -> None:
        items = (state or {}).items()
        self._sums = {name: torch.tensor(total) for name, (total, _) in items}
        self._counts = {name: count for name, (_, count) in items}
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0

    def add(self, loss: Loss) -> None:
        """Add one step's loss; nothing is copied from the device yet."""
        values = {"loss": loss.total} | {f"term/{name}": v for name, v in loss.terms.items()}
        for name, tensor in values.items():
            value = tensor.detach().float()
            before = self._sums.get(name)
            # A clone: a term may be a view of a parameter, which the next step changes in place.
            total = value.clone() if before is None else before.to(value.device) + value
            self._sums[name] = total
            self._counts[name] = self._counts.get(name, 0) + 1

    def add_time(self, seconds: float, waited: float) -> None:
        """Add one step's seconds, of which `waited` were spent on waiting for data."""
        self._steps += 1
        self._seconds += seconds
        self._waited += waited

    def means(self) -> dict[str, Tensor]:
        """Return the mean loss and the mean of each term, unweighted."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def speed(self, images_per_step: int) -> dict[str, float]:
        """Return images per second and the share of time spent on waiting for data."""
        seconds = max(self._seconds, 1e-9)
        return {
            "images_per_s": round(self._steps * images_per_step / seconds, 2),
            "data_wait": round(self._waited / seconds, 4),
        }

    def state(self) -> dict[str, tuple[float, int]]:
        """Return the sums and counts of losses as plain numbers."""
        return {name: (float(v), self._counts[name]) for name, v in self._sums.items()}
