"""SCMD: distil on the hardest images first, from logits and from a second, cross-modal head.

Leng et al., TMLR 2024 (arXiv 2402.11411), as its code computes it. With z the student's logits, f
its pooled feature, t the class features and p the teacher's zero-shot softmax(s cos(v, t) / τ),

    L = CE(z, y) + λ1 τ² KL(p ‖ softmax(z / τ)) + λ2 τ² KL(p ‖ softmax(e^a cos(W f, t) / τ)),

W linear without bias, a learnt from ln(1/0.07) and at most ln 100. Until the last share k of the
steps, L is taken over the ⌊q B⌋ images of a batch whose cross-entropy is highest.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import AttarError
from attar.losses import kl_distillation
from attar.methods.base import Method, Objective, Phase, Sizes, Views
from attar.methods.parts import (
    NO_LABEL,
    cross_entropy,
    labels_of,
    learnt_scale,
    require,
    zero_shot_logits,
)
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class SCMDOptions:
    """Options of `scmd`; the defaults are the official code's."""

    hard_share: float = 0.2
    """q, share of a batch that is learnt from while only hard images are."""
    full_share: float = 0.25
    """k, share of the steps, the last ones, in which the whole batch is learnt from."""
    logits_weight: float = 0.5
    """λ1, of the divergence of the student's logits from the teacher's distribution."""
    cross_modal_weight: float = 0.5
    """λ2, of the divergence of the cross-modal head's distribution."""
    temperature: float = 3.0
    """τ, which divides all logits; the divergences are multiplied by τ²."""
    scale: float = 100.0
    """s, what the teacher's cosines are multiplied by; CLIP's own is 100."""
    views: Views = "clean"
    """What the teacher saw of each image: see `vl2v-adip`."""

    def __post_init__(self) -> None:
        require(0 < self.hard_share <= 1, "hard_share", self.hard_share, "above 0, at most 1")
        require(0 <= self.full_share <= 1, "full_share", self.full_share, "from 0 to 1")
        for name in ("logits_weight", "cross_modal_weight"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "0 or more")
        for name in ("temperature", "scale"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "above 0")


class CrossModalHead(nn.Module):
    """Logits e^a cos(W f, t) of pooled features [B, W] over class features [C, D]."""

    def __init__(self, trunk_width: int, dim: int) -> None:
        super().__init__()
        self.projector = nn.Linear(trunk_width, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, trunk: Tensor, class_features: Tensor) -> Tensor:
        """Return the logits [B, C]."""
        projected = F.normalize(self.projector(trunk), dim=-1)
        scale = learnt_scale(self.log_scale)
        return scale * projected @ F.normalize(class_features, dim=-1).T


class SelectiveDistillation(Objective):
    """The sum over the hard images of a batch, or over all of it. Unlabelled images never count."""

    needs_trunk = True

    def __init__(self, options: SCMDOptions, head: CrossModalHead, share: float) -> None:
        super().__init__()
        self.options, self.head, self.share = options, head, share

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the sum; the divergences are logged with their τ² and without their weights."""
        if outputs.trunk is None:
            raise AttarError("scmd needs the features before the classifier")
        chosen, labels = self.options, labels_of(batch, "scmd")
        teacher = zero_shot_logits(batch, class_features, chosen.scale, "scmd")
        assert class_features is not None
        kept = hardest(outputs.features, labels, self.share)
        logits, wanted = outputs.features[kept], teacher[kept]
        cross_modal = self.head(outputs.trunk[kept], class_features)
        terms = {
            "cross_entropy": cross_entropy(logits, labels[kept]),
            "logits": _divergence(logits, wanted, chosen.temperature),
            "cross_modal": _divergence(cross_modal, wanted, chosen.temperature),
        }
        total = terms["cross_entropy"] + chosen.logits_weight * terms["logits"]
        return Loss(total=total + chosen.cross_modal_weight * terms["cross_modal"], terms=terms)


def hardest(logits: Tensor, labels: Tensor, share: float) -> Tensor:
    """Return the positions of the ⌊share · n⌋ labelled images of highest cross-entropy.

    At least one of the n labelled images is kept; a share of 1 keeps them all.

    Args:
        logits: [B, C].
        labels: [B], -1 for none.
        share: in (0, 1].
    """
    labelled = (labels != NO_LABEL).nonzero().squeeze(1)
    count = min(len(labelled), max(1, math.floor(share * len(labelled))))
    with torch.no_grad():
        each = F.cross_entropy(logits[labelled], labels[labelled], reduction="none")
        return labelled[each.topk(count).indices]


def _divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Return the divergence times τ², a zero that back-propagates where no image is left."""
    return kl_distillation(logits, wanted, temperature) if len(logits) else logits.sum()


def _phases(options: SCMDOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    if sizes.teacher_dim is None:
        raise AttarError("scmd projects into the teacher's space, whose width is not known")
    head = CrossModalHead(sizes.trunk_width, sizes.teacher_dim)
    full_steps = round(total_steps * options.full_share)
    plan = (
        ("hard", options.hard_share, total_steps - full_steps),
        ("all", 1.0, full_steps),
    )
    return tuple(
        Phase(
            name=name,
            objective=SelectiveDistillation(options, head, share),
            trainable="all",
            steps=steps,
            views=options.views,
        )
        for name, share, steps in plan
        if steps
    )


METHOD = Method(
    name="scmd",
    summary="the teacher's probabilities on hard images first, through two heads; needs labels",
    paper="Leng et al., TMLR 2024 (arXiv 2402.11411)",
    needs=frozenset({"teacher", "labels", "class_features"}),
    options=SCMDOptions,
    phases=_phases,
    head="classes",
)
