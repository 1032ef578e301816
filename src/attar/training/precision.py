"""Which number format a step computes in, chosen by timing it. Weights are always float32."""

import logging
import time
from collections.abc import Callable

import torch
from accelerate.utils import broadcast_object_list

from attar.device import autocast, supported_precisions, synchronize
from attar.training.step import StepModule
from attar.types import Batch

log = logging.getLogger(__name__)

_CANDIDATES = ("fp32", "bf16")
"""fp16 is no candidate: its range needs a loss scaler, whose state would join every checkpoint."""
_TIMED_STEPS = 3


def seconds_per_call(call: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Return the least seconds of `repeats` calls, after one that is not counted.

    The least and not the mean: whatever else runs on the machine can only add.
    """
    call()
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def choose_precision(module: StepModule, batch: Batch) -> str:
    """Time a forward and backward pass in each precision and return the fastest.

    The module ends with the weights and buffers it came with.
    """
    device = batch.images.device
    before = {k: v.detach().clone() for k, v in module.state_dict().items()}
    module.set_modes()
    seconds: dict[str, float] = {}

    def run() -> None:
        module(batch).total.backward()
        module.zero_grad(set_to_none=True)

    for precision in supported_precisions(device):
        if precision in _CANDIDATES:
            module.precision = precision
            seconds[precision] = seconds_per_call(run, device, _TIMED_STEPS)
    module.load_state_dict(before)
    chosen = min(seconds, key=seconds.__getitem__)
    timings = ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in seconds.items())
    log.info("precision auto chose %s (a step: %s)", chosen, timings)
    return chosen


def settle_precision(wanted: str, device: torch.device, measure: Callable[[], str]) -> str:
    """Return the precision that all processes compute in: the wanted one, or the measured one.

    Raises:
        UsageError: the device cannot compute in the wanted one.
    """
    if wanted != "auto":
        with autocast(device, wanted):
            return wanted
    return str(broadcast_object_list([measure()])[0])
