"""The three nouns that cross every border: Batch, Outputs and Loss.

B: batch, C: classes, D: the teacher's joint dimension, N: rows of another stream (N ≠ B).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's data. The teacher is present only through what it said: `image_features`."""

    images: Tensor
    """[B, 3, H, W], float in [0, 1]; every model normalises for itself."""
    keys: tuple[str, ...]
    """[B] sha256 of each file's bytes."""
    image_features: Tensor | None = None
    """[B, D] the teacher's unit image features, or None when the method needs no teacher."""
    labels: Tensor | None = None
    """[B] int64 with -1 for "no label", or [B, C] multi-hot."""
    domains: Tensor | None = None
    """[B] int64 index of the domain, -1 for none."""
    captions: tuple[str | None, ...] | None = None
    caption_features: Tensor | None = None
    """[B, D] the teacher's unit text features of the captions; zeros for an image without one."""
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    """Other named streams, e.g. "text" [N, D]; nothing pairs their rows with the images."""

    def to(self, device: torch.device) -> Self:
        """Return the same batch with every tensor on `device`."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            image_features=move(self.image_features),
            labels=move(self.labels),
            domains=move(self.domains),
            caption_features=move(self.caption_features),
            streams={k: v.to(device, non_blocking=True) for k, v in self.streams.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a student says about a batch."""

    features: Tensor
    """[B, D] unnormalised."""
    trunk: Tensor | None = None
    """[B, W] pooled features before the projection, on request."""
    regions: Tensor | None = None
    """[B, R, D] projected features of each image region, on request."""
    layers: tuple[Tensor, ...] | None = None
    """[B, W_l, h_l, w_l] feature maps of the stages or blocks, on request."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The differentiated total, and each term alone and unweighted for the log."""

    total: Tensor
    terms: Mapping[str, Tensor]
