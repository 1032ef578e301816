"""A batch that is spread over processes, seen whole by each of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from attar.types import Batch, Outputs

_ALONE = ContextVar("alone", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """Gather nothing meanwhile: one process computes a loss that the others do not.

    They would never answer.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def gather_with_gradients(rows: Tensor) -> Tensor:
    """Return the rows [n, D] of all processes, [n · world, D] in the order of their ranks.

    A gradient flows back to every process's own rows from the losses of all of them: each receives
    the sum. Where every process computes the same loss from the whole batch and gradients are then
    averaged over processes, as in data-parallel training, the result is the gradient of that one
    loss. Alone, the rows come back as they are. Every process must give as many rows.
    """
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not together or _ALONE.get():
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def joined(outputs: Outputs, batch: Batch) -> tuple[Tensor, Batch]:
    """Return the student's features of all processes' images, and what is known of these.

    A loss of them is the same in every process, that of the joined batch, and so is its gradient,
    see `gather_with_gradients`. Alone, nothing changes.

    Returns:
        Features [B · world, D], and the batch with the teacher's image features, the labels and the
        features of captions of all these images. Its images, keys, domains and streams stay this
        process's own: the loss has no use for them.
    """

    def whole(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else gather_with_gradients(rows)

    return gather_with_gradients(outputs.features), replace(
        batch,
        image_features=whole(batch.image_features),
        labels=whole(batch.labels),
        caption_features=whole(batch.caption_features),
    )


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        start = dist.get_rank() * ctx.count
        return summed[start : start + ctx.count]
