"""MIRO: supervised training that stays near the pretrained features.

Cha et al., ECCV 2022 (arXiv 2203.10789), as its code computes it. With f_l the student's features
at layer l and f0_l those of the frozen initial student on the same images,

    L = CE(z, y) + λ Σ_l ½ mean[ (f_l - f0_l)² / σ²_l + log σ²_l ],    σ²_l = softplus(b_l) + 1e-5,

a Gaussian bound on the mutual information: one learnt b_l per channel, σ² = 0.1 at first, the mean
over images, channels and places. No teacher takes part: the student's own pretraining is what it is
pulled towards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import AttarError
from attar.methods.base import Method, Objective, Phase, Sizes
from attar.methods.parts import cross_entropy, labels_of, require
from attar.types import Batch, Loss, Outputs

_LEAST_VARIANCE = 1e-5
_FIRST_VARIANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class MIROOptions:
    """Options of `miro`."""

    weight: float = 0.1
    """λ of the term that keeps features near the pretrained ones; the paper tries 1 to 0.001."""

    def __post_init__(self) -> None:
        require(0 <= self.weight < math.inf, "weight", self.weight, "0 or more")


class MIRO(Objective):
    """Cross-entropy and the distance to the anchor's features, channel by channel.

    The layers are those that the student gives, else its pooled features alone.
    """

    needs_trunk = True
    needs_layers = True
    needs_anchor = True

    def __init__(self, weight: float, widths: Sequence[int]) -> None:
        """Begin with σ² = 0.1 everywhere; `widths` are the layers' channels."""
        super().__init__()
        self.weight = weight
        begin = math.log(math.expm1(_FIRST_VARIANCE - _LEAST_VARIANCE))
        self.scales = nn.ParameterList(torch.full((width,), begin) for width in widths)

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the sum; the second term is logged unweighted as `anchor`."""
        if anchor is None:
            raise AttarError("miro needs the initial student's features on the same images")
        supervised = cross_entropy(outputs.features, labels_of(batch, "miro"))
        near = torch.stack(
            [
                gaussian_bound(own, first.detach(), scale)
                for own, first, scale in zip(
                    _layers(outputs), _layers(anchor), self.scales, strict=True
                )
            ]
        ).sum()
        terms = {"cross_entropy": supervised, "anchor": near}
        return Loss(total=supervised + self.weight * near, terms=terms)


def gaussian_bound(features: Tensor, initial: Tensor, scale: Tensor) -> Tensor:
    """Return ½ mean[(f - f0)² / σ² + log σ²] with σ² = softplus(b) + 1e-5 for each channel.

    Args:
        features: [B, W] pooled, [B, N, W] tokens, or [B, W, h, w] a map.
        initial: the initial student's, in the same shape.
        scale: b [W].
    """
    variance = F.softplus(scale) + _LEAST_VARIANCE
    if features.ndim == 4:
        variance = variance[:, None, None]
    return ((features - initial).square() / variance + variance.log()).mean() / 2


def _layers(outputs: Outputs) -> tuple[Tensor, ...]:
    if outputs.trunk is None:
        raise AttarError("miro needs the features before the projection")
    return outputs.layers or (outputs.trunk,)


def _phases(options: MIROOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    objective = MIRO(options.weight, sizes.layer_widths or (sizes.trunk_width,))
    return (Phase(name="train", objective=objective, trainable="all", steps=total_steps),)


METHOD = Method(
    name="miro",
    summary="labels, and features kept near the pretrained ones; without a teacher",
    paper="Cha et al., ECCV 2022 (arXiv 2203.10789)",
    needs=frozenset({"labels"}),
    options=MIROOptions,
    phases=_phases,
    head="classes",
    training={"objective_lr_factor": 10.0},
)
