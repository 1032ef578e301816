"""SWAD: dense averaging over the valley of the validation loss (Cha et al., NeurIPS 2021).

The weights after every step are averaged into a segment; each validation ends a segment and gives
it a loss. With the losses l_1, l_2, ... (n_c = 3, n_t = 6, r = 0.3 by default):

    start     the first i with l_i = min(l_i ... l_{i+n_c-1})
    threshold (1 + r) · mean(l_i ... l_{i+n_c-1})
    backwards earlier segments among the last n_t join while their loss is at most the threshold
    end       the last loss at most the threshold; n_t losses in a row above it end the search

The result is the mean of the window's segments. Before a start is found it is the last segment.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attar.errors import AttarError
from attar.training.weights import Mean, State, part

Segments = Literal["fresh", "vl2v"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """What one validation ended."""

    number: int
    """Of the validation in its phase, from 1."""
    loss: float
    weights: State
    """The mean of the weights after each step since the segment began."""


class _Search(ABC):
    """The state that every search for the window has: it is all that a resumed run needs."""

    def __init__(self, converge: int, tolerance: int, ratio: float) -> None:
        """Begin.

        Args:
            converge: n_c, losses that tell whether the minimum has been passed.
            tolerance: n_t, losses above the threshold, in a row, that end the window.
            ratio: r, how far above their mean the threshold lies.
        """
        self.converge, self.tolerance, self.ratio = converge, tolerance, ratio
        self.recent: list[Segment] = []
        self.threshold: float | None = None
        self.start = 0
        self.dead = False
        self.mean = Mean()

    def add(self, segment: Segment) -> None:
        """Take in a segment; one that comes after the end of the window changes nothing."""
        if self.dead:
            return
        self.recent.append(segment)
        if self.threshold is not None:
            self._go_on()
            return
        last = self.recent[-self.converge :]
        losses = [one.loss for one in last]
        if len(last) == self.converge and losses[0] == min(losses):
            self.threshold = (1 + self.ratio) * sum(losses) / len(losses)
            self.start = last[0].number
            _LOG.info(
                "swad: the validation loss settled at validation %d (%.4f); up to %.4f joins",
                self.start,
                losses[0],
                self.threshold,
            )
            self._begin(len(self.recent) - self.converge)
        del self.recent[: -max(self.converge, self.tolerance)]

    @property
    def settled(self) -> bool:
        """Whether a start has been found."""
        return self.threshold is not None

    @abstractmethod
    def _begin(self, first: int) -> None:
        """Take in what has been seen; `recent[first]` is the start."""

    @abstractmethod
    def _go_on(self) -> None:
        """Take in what `recent` just received."""

    @abstractmethod
    def weights(self) -> State:
        """Return the average as it would be if training ended now; there has been a segment."""

    def _within(self, segment: Segment) -> bool:
        assert self.threshold is not None
        return segment.loss <= self.threshold

    def _die(self) -> None:
        self.dead = True
        _LOG.info("swad: the valley ended; later weights are not averaged")

    def state_dict(self) -> State:
        """Return everything needed to go on, as named tensors."""
        threshold = math.nan if self.threshold is None else self.threshold
        state = {
            "search.threshold": torch.tensor(threshold, dtype=torch.float64),
            "search.start": torch.tensor(self.start),
            "search.dead": torch.tensor(self.dead),
            **self.mean.state_dict("search.mean"),
        }
        for index, one in enumerate(self.recent):
            state[f"recent.{index}.number"] = torch.tensor(one.number)
            state[f"recent.{index}.loss"] = torch.tensor(one.loss, dtype=torch.float64)
            state |= {f"recent.{index}.weights.{k}": v for k, v in one.weights.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        threshold = float(state["search.threshold"])
        self.threshold = None if math.isnan(threshold) else threshold
        self.start, self.dead = int(state["search.start"]), bool(state["search.dead"])
        self.mean.load_state_dict(state, "search.mean")
        self.recent = []
        while f"recent.{len(self.recent)}.number" in state:
            prefix = f"recent.{len(self.recent)}."
            segment = Segment(
                number=int(state[f"{prefix}number"]),
                loss=float(state[f"{prefix}loss"]),
                weights={k: v.clone() for k, v in part(state, f"{prefix}weights.")},
            )
            self.recent.append(segment)


class Window(_Search):
    """Each segment of the window once. After the start, `recent` holds those not yet decided."""

    def _begin(self, first: int) -> None:
        earliest = max(0, len(self.recent) - self.tolerance)
        while first > earliest and self._within(self.recent[first - 1]):
            first -= 1
        window, self.recent = self.recent[first:], []
        for segment in window:
            if not self.dead:
                self.recent.append(segment)
                self._go_on()

    def _go_on(self) -> None:
        if self._within(self.recent[-1]):
            for segment in self.recent:
                self.mean.add(segment.weights)
            self.recent = []
        elif len(self.recent) >= self.tolerance:
            self._die()

    def weights(self) -> State:
        """Return the mean of the window's segments, or the last segment."""
        return self.mean.weights if self.settled else self.recent[-1].weights


class OfficialWindow(_Search):
    """The official class LossValley, step by step, with what it counts twice and what it skips.

    The start is taken in twice: backwards, and when it has become the oldest of the n_t in the
    queue. Of the segments that join backwards the earliest is left out. As long as the queue is not
    full, its oldest segment is taken in anew at each validation.
    """

    def _begin(self, first: int) -> None:
        queue = self.recent[-self.tolerance :]
        later = self.recent[-self.converge :][1:]
        joining: Sequence[Segment] = later[: max(0, self.converge - self.tolerance)]
        if self.tolerance > self.converge:
            front = queue[: self.tolerance - self.converge + 1]
            above = [i for i, one in enumerate(front) if not self._within(one)]
            skipped = above[-1] + 1 if above else 0
            joining = front[skipped + 1 :]
        for segment in joining:
            self.mean.add(segment.weights)
        if not self.mean.count:  # a copy of the start, which the first segment taken in replaces
            self.mean.weights = self.recent[first].weights

    def _go_on(self) -> None:
        del self.recent[: -self.tolerance]
        if self.recent[0].number < self.start:
            return
        if not any(self._within(one) for one in self.recent):
            self._die()
            return
        self.mean.add(self.recent[0].weights)

    def weights(self) -> State:
        """Return the average with what is left in the queue, or the last segment."""
        if not self.settled:
            return self.recent[-1].weights
        if self.dead:
            return self.mean.weights
        mean, left = self.mean.copy(), self.recent[-self.tolerance :][1:]
        while left and any(self._within(one) for one in left):
            mean.add(left.pop(0).weights)
        return mean.weights


class SWAD:
    """The average over the valley that the validation losses show, see the top of this module.

    Training goes on to the end of its budget when the valley has ended; the average stays.
    """

    judges_live = True

    def __init__(self, device: torch.device, window: _Search, segments: Segments = "fresh") -> None:
        """Begin.

        Args:
            device: of the model; the segment under way lies there, ended ones on the CPU.
            window: the search to use.
            segments: `fresh` begins a segment after each validation, as the original does; `vl2v`
                only after validations at a multiple of 1000 steps beyond 2500, as VL2V's code
                does without its flag: segments then overlap.
        """
        self._device, self._window, self._segments = device, window, segments
        self._segment = Mean()
        self._steps = self._validations = 0

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        self._steps += 1
        self._segment.add(model.state_dict())

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """End a segment with the live weights' validation loss.

        Raises:
            AttarError: there is no finite "loss".
        """
        if not self._segment.count:
            return  # nothing was trained since the last one, or yet
        loss = metrics.get("loss", math.nan)
        if not math.isfinite(loss):
            raise AttarError(
                f"validation at step {step} gave no finite loss, and SWAD chooses by it; use "
                "another --training.average"
            )
        self._validations += 1
        # A copy: the segment goes on unless a fresh one begins.
        weights = {k: v.detach().to("cpu", copy=True) for k, v in self._segment.weights.items()}
        self._window.add(Segment(self._validations, float(loss), weights))
        if self._segments == "fresh" or (self._steps % 1000 == 0 and self._steps > 2500):
            self._segment = Mean()

    def weights(self) -> State:
        """Return the average as it would be if training ended now."""
        if not self._window.settled:
            _LOG.warning(
                "swad: the validation loss has not settled after %d validations; the weights of "
                "the last segment are averaged, longer training may find a valley",
                self._validations,
            )
        return self._window.weights() if self._validations else self._segment.weights

    def state_dict(self) -> State:
        """Return the search, its queue of segments and the segment under way."""
        numbers = torch.tensor([self._steps, self._validations])
        return {
            "numbers": numbers,
            **self._segment.state_dict("segment"),
            **self._window.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        self._steps, self._validations = (int(number) for number in state["numbers"])
        self._segment.load_state_dict(state, "segment", self._device)
        self._window.load_state_dict(state)
