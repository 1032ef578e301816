"""Averages of the weights along a phase: validated and saved in place of the last weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from attar.training.config import TrainingConfig


class Averager(Protocol):
    """Sees the weights after every step and each validation; yields averaged weights.

    One is made at the start of each phase.
    """

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in what validation on source images said after `step` steps."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return the averaged state dict of the model."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything needed to go on, as named tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""


class ExponentialAverage:
    """w̄ ← d·w̄ + (1-d)·w with d = min(decay, (1+n)/(10+n)) after n steps.

    The ramp keeps the starting weights from dominating short runs. BatchNorm's running statistics
    are averaged alike; counters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._count = 0
        self._average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self._count += 1
        decay = min(self._decay, (1 + self._count) / (10 + self._count))
        for name, value in model.state_dict().items():
            average = self._average[name]
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing to do: this average does not look at validation."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return the averaged state dict of the model."""
        return self._average

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and the number of steps seen."""
        return {"count": torch.tensor(self._count)} | {
            f"average.{name}": value for name, value in self._average.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self._count = int(state["count"])
        for name, average in self._average.items():
            average.copy_(state[f"average.{name}"])


def build_averager(config: TrainingConfig, model: nn.Module) -> Averager | None:
    """Return the configured average, starting at the model's weights, or None."""
    return None if config.ema is None else ExponentialAverage(model, config.ema)


@contextmanager
def averaged_weights(model: nn.Module, averager: Averager | None) -> Iterator[None]:
    """Let the model carry the averaged weights inside the block, and its own again after it."""
    if averager is None:
        yield
        return
    own = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(dict(averager.weights()))
    try:
        yield
    finally:
        model.load_state_dict(own)
