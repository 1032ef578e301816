"""Running means of state dicts."""

from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]


@torch.no_grad()
def blend(average: State, weights: Mapping[str, Tensor], share: float) -> None:
    """Move an average by `share` of the way towards some weights, in place; counters are copied."""
    for name, value in weights.items():
        if average[name].is_floating_point():
            average[name].lerp_(value.to(average[name].device), share)
        else:
            average[name].copy_(value)


class Mean:
    """The plain mean of the weights it was given; holds nothing before the first."""

    def __init__(self) -> None:
        self.weights: State = {}
        self.count = 0

    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Take in one more; the mean stays on the device of the first."""
        self.count += 1
        if self.count == 1:
            self.weights = {name: value.detach().clone() for name, value in weights.items()}
        else:
            blend(self.weights, weights, 1 / self.count)

    def copy(self) -> "Mean":
        """Return a mean that goes on by itself."""
        other = Mean()
        other.weights = {name: value.clone() for name, value in self.weights.items()}
        other.count = self.count
        return other

    def state_dict(self, prefix: str) -> State:
        """Return the mean and its count as named tensors."""
        named = {f"{prefix}.weights.{name}": value for name, value in self.weights.items()}
        return {f"{prefix}.count": torch.tensor(self.count), **named}

    def load_state_dict(
        self, state: Mapping[str, Tensor], prefix: str, device: torch.device | None = None
    ) -> None:
        """Go on from what `state_dict` returned, on `device`."""
        self.count = int(state[f"{prefix}.count"])
        self.weights = {k: v.to(device, copy=True) for k, v in part(state, f"{prefix}.weights.")}


def part(state: Mapping[str, Tensor], prefix: str) -> list[tuple[str, Tensor]]:
    """Return the names under a prefix, without it, and their tensors."""
    return [(k.removeprefix(prefix), v) for k, v in state.items() if k.startswith(prefix)]
