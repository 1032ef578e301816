"""A batch that is spread over processes, seen whole by each of them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_with_gradients(rows: Tensor) -> Tensor:
    """Return the rows [n, D] of all processes, [n · world, D] in the order of their ranks.

    A gradient flows back to every process's own rows from the losses of all of them: each receives
    the sum. Where every process computes the same loss from the whole batch and gradients are then
    averaged over processes, as in data-parallel training, the result is the gradient of that one
    loss. Alone, the rows come back as they are. Every process must give as many rows.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


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
