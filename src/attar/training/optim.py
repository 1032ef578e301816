"""Optimisers and learning-rate schedules; the rate is a pure function of the step."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from attar.errors import unknown_name
from attar.training.config import TrainingConfig

OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, **options),
}

SCHEDULES: Mapping[str, Callable[[float, TrainingConfig], float]] = {
    "cosine": lambda progress, config: _cosine(progress, 1.0, 0.0),
    "step": lambda progress, config: 0.1 ** sum(progress >= share for share in config.milestones),
    "one-cycle": lambda progress, config: _one_cycle(progress),
    "constant": lambda progress, config: 1.0,
}
"""Share of the phase after warm-up that is over, in [0, 1) -> factor of the peak learning rate."""

_RISE, _FIRST, _LAST = 0.3, 1 / 25, 1 / 250_000
"""The defaults of PyTorch's OneCycleLR; unlike there, momentum stays as it is."""


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of step `step` (from 0) of a phase with `total_steps` steps.

    `one-cycle` has a warm-up of its own and reaches its end in the last step.
    """
    peak = config.of("lr")
    if config.schedule == "one-cycle":
        # OneCycleLR turns at the step _RISE * total - 1, counted from 0, and ends at total - 1.
        top, end = _RISE * total_steps - 1, total_steps - 1
        rising = step <= top
        part = step / top if rising else (step - top) / max(end - top, 1e-9)
        return peak * _one_cycle(_RISE * part if rising else _RISE + (1 - _RISE) * part)
    warmup_steps = round(config.of("warmup") * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * SCHEDULES[config.schedule](progress, config)


def _one_cycle(progress: float) -> float:
    if progress <= _RISE:
        return _cosine(progress / _RISE, _FIRST, 1.0)
    return _cosine((progress - _RISE) / (1 - _RISE), 1.0, _LAST)


def _cosine(progress: float, start: float, end: float) -> float:
    """Fall (or rise) from `start` to `end` along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def build_optimizer(
    config: TrainingConfig,
    student: Iterable[nn.Parameter],
    others: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Return a new optimiser over the parameters that require a gradient.

    `others` are the objective's own and learnt class features: their learning rate is multiplied
    by `objective_lr_factor`. Weight decay spares biases and all other 1-D parameters.

    Raises:
        UsageError: an optimiser or schedule that does not exist.
    """
    if config.optimizer not in OPTIMIZERS:
        raise unknown_name("optimizer", config.optimizer, OPTIMIZERS)
    if config.schedule not in SCHEDULES:
        raise unknown_name("schedule", config.schedule, SCHEDULES)
    factor = config.of("objective_lr_factor")
    groups = _groups(config, student, 1.0) + _groups(config, others, factor)
    return OPTIMIZERS[config.optimizer](groups, lr=config.of("lr"))


def _groups(
    config: TrainingConfig, parameters: Iterable[nn.Parameter], lr_factor: float
) -> list[dict[str, Any]]:
    trained = [p for p in parameters if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    spared = [p for p in trained if p.ndim <= 1]
    pairs = ((decayed, config.of("weight_decay")), (spared, 0.0))
    return [
        {"params": params, "weight_decay": decay, "lr_factor": lr_factor}
        for params, decay in pairs
        if params
    ]
