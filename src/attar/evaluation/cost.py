"""What a model costs to run: its parameters, its bytes, and the time for one image on this machine.

The image side alone: classes are described once, however many images follow. A network of torch is
timed as it is, in this process; a bundle by onnxruntime in a process of its own. Both run one image
at a time, on one thread of the processor or on the accelerator.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from attar.evaluation.evidence import ALL_DOMAINS, EvaluationData, Evidence, make_record
from attar.evaluation.models import EvaluatedModel
from attar.records import Record
from attar.runtime.latency import cpu_name, measure_latency

TASK = "cost"

_WARM_UP, _RUNS, _LEAST_RUNS = 3, 30, 5
_SECONDS = 5.0
"""A slow network is timed no longer than this, once it has run a few times."""
_PHOTO = (640, 480)


class Cost(NamedTuple):
    """What running a model takes."""

    num_parameters: int
    megabytes: float
    """Of its weights and statistics in memory, or of the bundle's model file (10⁶ bytes)."""
    latency_ms: float
    """Median time of one prepared image."""
    conditions: dict[str, Any]
    """Where and how it was timed."""


def cost(evidence: Evidence, teacher: Evidence | None, data: EvaluationData) -> list[Record]:
    """Measure what one model costs; one that does not run here gives no record."""
    place = make_record(
        evidence.model, data, TASK, domain=ALL_DOMAINS, num_images=len(data.table), metrics={}
    )
    return cost_records(evidence.model, [place])


def cost_records(model: EvaluatedModel, beside: Sequence[Record]) -> list[Record]:
    """Measure a model once; return its cost beside each of these records of it.

    A report joins cost and accuracy by data set and split. None without a network to measure.
    """
    found = measure_cost(model) if beside else None
    if found is None:
        return []
    values = {
        "num_parameters": float(found.num_parameters),
        "megabytes": found.megabytes,
        "latency_ms": found.latency_ms,
    }
    return [
        replace(one, task=TASK, domain=ALL_DOMAINS, metrics=values, extra=found.conditions)
        for one in beside
    ]


def measure_cost(model: EvaluatedModel) -> Cost | None:
    """Count and time a model; None where its network is not here (a store, an address)."""
    if model.bundle is not None:
        return _cost_of_bundle(model)
    if model.network is None or model.prepare is None or model.encode is None:
        return None
    return _cost_of_network(model, model.network)


def _cost_of_bundle(model: EvaluatedModel) -> Cost:
    import onnx

    from attar.runtime.bundle import MODEL

    assert model.bundle is not None
    graph = onnx.load(model.bundle / MODEL).graph
    measured = measure_latency(model.bundle, threads=1, runs=_RUNS)
    kept = ("threads", "batch", "runs", "cpu", "image_size")
    return Cost(
        num_parameters=sum(int(np.prod(weight.dims)) for weight in graph.initializer),
        megabytes=measured["model_mb"],
        latency_ms=measured["median_ms"],
        conditions={"runtime": "onnxruntime", "device": "cpu", **{k: measured[k] for k in kept}},
    )


def _cost_of_network(model: EvaluatedModel, network: nn.Module) -> Cost:
    assert model.prepare is not None
    assert model.encode is not None
    encode = model.encode
    tensors = [*network.parameters(), *network.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    pixels = torch.as_tensor(model.prepare(Image.new("RGB", _PHOTO, (120, 130, 140))))[None]
    with _one_thread():
        # .cpu() waits for an accelerator to be done.
        times = _time(lambda: encode(pixels).cpu())
    return Cost(
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
        latency_ms=statistics.median(times) * 1e3,
        conditions={
            "runtime": "torch",
            "device": device.type,
            "threads": 1,
            "batch": 1,
            "runs": len(times),
            "cpu": cpu_name(),
            "image_size": pixels.shape[-1],
        },
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _time(call: Callable[[], object]) -> list[float]:
    """Return the seconds of each timed call: 30, or as many as fit into five seconds."""
    times: list[float] = []
    for _ in range(_WARM_UP):
        call()
    while len(times) < _RUNS and (len(times) < _LEAST_RUNS or sum(times) < _SECONDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
