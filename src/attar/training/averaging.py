"""Averages of the weights along a phase: validated and saved in place of the last weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from attar.training.config import TrainingConfig
from attar.training.swad import SWAD, OfficialWindow, Window
from attar.training.weights import Mean, blend, part


class Averager(Protocol):
    """Sees the weights after every step and each validation; yields averaged weights.

    One is made at the start of each phase.
    """

    judges_live: bool
    """Whether it chooses what to average by the validation of the live weights: those are then
    measured, and no other selection applies to its result."""

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

    judges_live = False

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._count = 0
        self._average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self._count += 1
        decay = min(self._decay, (1 + self._count) / (10 + self._count))
        blend(self._average, model.state_dict(), 1 - decay)

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


class TailAverage:
    """The plain mean of the weights after each of a phase's last steps (Izmailov et al., 2018).

    Before the tail begins, the live weights stand in for the mean.
    """

    judges_live = False

    def __init__(self, model: nn.Module, phase_steps: int, share: float) -> None:
        self._model = model
        self._skipped = phase_steps - max(1, round(share * phase_steps))
        self._steps = 0
        self._mean = Mean()

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self._steps += 1
        if self._steps > self._skipped:
            self._mean.add(model.state_dict())

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing to do: this average does not look at validation."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return the averaged state dict of the model."""
        return self._mean.weights if self._mean.count else self._model.state_dict()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and the number of steps seen."""
        return {"steps": torch.tensor(self._steps), **self._mean.state_dict("mean")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self._steps = int(state["steps"])
        self._mean.load_state_dict(state, "mean", device_of(self._model))


class Interpolation:
    """(1 - a) w0 + a w, with w0 the weights at the start (WiSE-FT; Wortsman et al., CVPR 2022).

    w are the live weights, or another average of them, whose rules then hold.
    """

    def __init__(self, model: nn.Module, share: float, average: Averager | None) -> None:
        self._model = model
        self._share = share
        self._average = average
        self.judges_live = chooses(average)
        self._start = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        if self._average is not None:
            self._average.update(model)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in what validation on source images said after `step` steps."""
        if self._average is not None:
            self._average.validated(step, metrics)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the interpolated state dict of the model; counters are those of w."""
        reached = self._model.state_dict() if self._average is None else self._average.weights()
        mixed = {name: value.clone() for name, value in self._start.items()}
        blend(mixed, reached, self._share)
        return mixed

    def state_dict(self) -> dict[str, Tensor]:
        """Return the start and the inner average's state."""
        inner = {} if self._average is None else self._average.state_dict()
        state = {f"start.{name}": value for name, value in self._start.items()}
        return state | {f"average.{name}": value for name, value in inner.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        device = device_of(self._model)
        self._start = {name: value.to(device) for name, value in part(state, "start.")}
        if self._average is not None:
            self._average.load_state_dict(dict(part(state, "average.")))


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's weights are."""
    return next(iter(model.state_dict().values())).device


def build_averager(
    config: TrainingConfig,
    model: nn.Module,
    phase_steps: int,
    *,
    last: bool = True,
    share: float = 1.0,
) -> Averager | None:
    """Return the configured average, starting at the model's weights, or None.

    SWAD averages in the last phase alone: what an earlier one hands on are its live weights, as
    VL2V's second stage starts from raw weights and not from an average. With a `share` below 1 the
    result, averaged or not, is drawn back towards the model's weights of now.
    """
    average = _configured(config, model, phase_steps, last=last)
    return average if share == 1 else Interpolation(model, share, average)


def _configured(
    config: TrainingConfig, model: nn.Module, phase_steps: int, *, last: bool
) -> Averager | None:
    kind = config.averaging
    if kind == "ema":
        return ExponentialAverage(model, config.ema_decay)
    if kind == "tail":
        return TailAverage(model, phase_steps, config.tail_share)
    if kind in ("swad", "swad-code") and last:
        numbers = (config.swad_converge, config.swad_tolerance, config.swad_ratio)
        window = OfficialWindow(*numbers) if kind == "swad-code" else Window(*numbers)
        return SWAD(device_of(model), window, config.swad_segments)
    return None


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


@contextmanager
def validated_weights(model: nn.Module, averager: Averager | None) -> Iterator[None]:
    """Let the model carry the weights that validation measures inside the block."""
    with averaged_weights(model, None if chooses(averager) else averager):
        yield


def chooses(averager: Averager | None) -> bool:
    """Say whether the average itself chooses by validation, so that nothing else may."""
    return averager is not None and averager.judges_live
