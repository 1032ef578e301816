"""How long a step takes on this machine, measured before anything long begins."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from attar.device import pick_device, synchronize, to_channels_last, usable_cores
from attar.methods.base import ClassFeatures, Phase
from attar.methods.gathering import apart
from attar.students.student import Student
from attar.training.config import TrainingConfig
from attar.training.feed import Feed, Place
from attar.training.optim import build_optimizer
from attar.training.precision import seconds_per_call
from attar.training.step import StepModule
from attar.types import Batch

_TIMED_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds that one optimiser step takes."""

    step: float
    """Mean over the budget, data included."""
    compute: Mapping[str, float]
    """Forward, backward and optimiser of each phase, by name."""
    data: float
    """Reading and augmenting one process's batch, in one worker."""


def measure_step(
    student: Student,
    phases: Sequence[Phase],
    feed: Feed,
    class_features: ClassFeatures | None,
    config: TrainingConfig,
    *,
    width: int | None = None,
) -> StepTime:
    """Time a step of each phase on copies; nothing that is given changes.

    Real images are read, but the store is not: the teacher need not have been asked yet, random
    features stand in for its answers. With `precision auto` float32 is timed, so the estimate is
    an upper bound. `width` is that of the teacher's features, the student's own by default.
    """
    device = pick_device()
    batch, data = _timed_batch(feed, device)
    features = torch.randn(len(batch.images), width or student.spec.dim, device=device)
    captions = F.normalize(torch.randn_like(features), dim=-1)
    batch = replace(batch, image_features=F.normalize(features, dim=-1), caption_features=captions)
    precision = "fp32" if config.precision == "auto" else config.precision
    compute = {}
    for phase in phases:
        # One call, so that an objective which shares parts with the class features still does.
        objective, provider = copy.deepcopy((phase.objective, class_features))
        copied, anchor = copy.deepcopy(student), copy.deepcopy(student).to(device).eval()
        module = StepModule(
            to_channels_last(copied),
            replace(phase, objective=objective),
            provider,
            precision,
            anchor,
        )
        with apart():
            compute[phase.name] = _seconds_per_step(module.to(device), config, batch)
    total = sum(phase.steps for phase in phases)
    mean = sum(compute[phase.name] * phase.steps for phase in phases) / max(1, total)
    return StepTime(step=_together(mean, data, device, config), compute=compute, data=data)


def _timed_batch(feed: Feed, device: torch.device) -> tuple[Batch, float]:
    """Return the first batch and the seconds that reading it takes."""
    start = time.perf_counter()
    batch = feed.first_batch(Place(device))
    synchronize(device)
    return batch, time.perf_counter() - start


def _seconds_per_step(module: StepModule, config: TrainingConfig, batch: Batch) -> float:
    optimizer = build_optimizer(config, module.student.parameters(), module.other_parameters())
    module.set_modes()

    def run() -> None:
        module(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return seconds_per_call(run, batch.images.device, _TIMED_STEPS)


def _together(compute: float, data: float, device: torch.device, config: TrainingConfig) -> float:
    """Return the seconds of a step when data and computing share the machine.

    Without workers they take turns. Workers read beside the step: on a GPU the slower of the two
    decides, on the CPU they also share its cores.
    """
    if config.workers == 0:
        return compute + data
    if device.type != "cpu":
        return max(compute, data / config.workers)
    return max(compute + data / usable_cores(), data / config.workers)
