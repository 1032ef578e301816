"""RISE: distil the teacher's probabilities, and where its texts lie, absolutely and relatively.

Huang et al., ICCV 2023 (arXiv 2309.12530), as its code computes it. With f the student's feature, t
the class features, v the teacher's image feature and t_{d,y} the text feature of "a {domain} of a
{class}" for the source domains d,

    L = w_label CE(z, y) + w_teacher T² KL(softmax(s cos(v, t) / T) ‖ softmax(z / T))
        + w_text (1 - cos(f, t_y))
        + 10 w_text MSE(softmax_d cos(f, t_{d,y}), softmax_d cos(t_y, t_{d,y})),    z = f tᵀ.

The official class head begins at t and is trained on; here z stays f tᵀ with unit t, so that the
student is classified by class features, as all students in the teacher's space are.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import AttarError
from attar.losses import kl_distillation
from attar.methods.base import Method, Need, Objective, Phase, Sizes, Views
from attar.methods.parts import cross_entropy, labels_of, require, zero_shot_logits
from attar.types import Batch, Loss, Outputs

_RELATIVE = 10.0


@dataclass(frozen=True, kw_only=True)
class RISEOptions:
    """Options of `rise`; the code searches the weights 0.1 or 0.2, 0.9 or 0.8, and 0.5, 1, 2."""

    label_weight: float = 0.1
    """Weight of the cross-entropy on labels."""
    teacher_weight: float = 0.9
    """Weight of the divergence from the teacher's zero-shot distribution."""
    text_weight: float = 1.0
    """Weight of the absolute and (ten times) the relative distance to texts."""
    temperature: float = 3.0
    """T, which divides both sides' logits; the divergence is multiplied by T²."""
    scale: float = 100.0
    """s, what the teacher's cosines are multiplied by; CLIP's own is 100."""
    anchors: tuple[str, ...] = ()
    """Words in place of the domains' names, for domains whose names say nothing: the code has
    [bright photo, corrupted photo, dark photo, good photo] for VLCS and TerraIncognita."""
    views: Views = "clean"
    """What the teacher saw of each image: see `vl2v-adip`."""

    def __post_init__(self) -> None:
        for name in ("label_weight", "teacher_weight", "text_weight"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "0 or more")
        for name in ("temperature", "scale"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "above 0")


class RISE(Objective):
    """The weighted sum; images without a label follow the teacher's distribution alone."""

    def __init__(self, options: RISEOptions) -> None:
        super().__init__()
        self.options = options

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the sum; `relative` is logged without its factor 10."""
        chosen, features = self.options, outputs.features
        teacher = zero_shot_logits(batch, class_features, chosen.scale, "rise")
        assert class_features is not None
        labels = labels_of(batch, "rise")
        classes = F.normalize(class_features, dim=-1)
        logits = features @ classes.T
        known = labels >= 0
        own, of_class = features[known], classes[labels[known]]
        terms = {
            "cross_entropy": cross_entropy(logits, labels),
            "distillation": kl_distillation(logits, teacher, chosen.temperature),
            "absolute": absolute_distance(own, of_class),
        }
        total = chosen.label_weight * terms["cross_entropy"]
        total = total + chosen.teacher_weight * terms["distillation"]
        total = total + chosen.text_weight * terms["absolute"]
        if chosen.text_weight:
            texts = batch.streams.get("domain_texts")
            if texts is None:
                raise AttarError("rise needs the text features of each class in each domain")
            terms["relative"] = relative_distance(own, of_class, texts[labels[known]])
            total = total + _RELATIVE * chosen.text_weight * terms["relative"]
        return Loss(total=total, terms=terms)


def absolute_distance(student: Tensor, of_class: Tensor) -> Tensor:
    """Return the mean of 1 - cos(f, t_y) over labelled images [n, D]; zero when there are none."""
    cosines = F.cosine_similarity(student, of_class, dim=-1)
    return (1 - cosines).sum() / max(len(student), 1)


def relative_distance(student: Tensor, of_class: Tensor, in_domains: Tensor) -> Tensor:
    """Return the mean squared difference between two softmaxes over the source domains.

    Args:
        student: f [n, D].
        of_class: t_y [n, D].
        in_domains: t_{d,y} [n, S, D].
    """
    own = F.cosine_similarity(student[:, None], in_domains, dim=-1).softmax(dim=-1)
    wanted = F.cosine_similarity(of_class[:, None], in_domains, dim=-1).softmax(dim=-1)
    squared = (own - wanted.detach()).square()
    return squared.sum() / max(torch.numel(squared), 1)


def _domain_texts(options: RISEOptions) -> tuple[str, ...] | None:
    return options.anchors if options.text_weight else None


def _asks(options: RISEOptions) -> frozenset[Need]:
    return frozenset({"domains"} if _domain_texts(options) == () else ())


def _phases(options: RISEOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    return (
        Phase(
            name="distill",
            objective=RISE(options),
            trainable="all",
            steps=total_steps,
            views=options.views,
        ),
    )


METHOD = Method(
    name="rise",
    summary="the teacher's probabilities and its texts of classes and domains; needs labels",
    paper="Huang et al., ICCV 2023 (arXiv 2309.12530)",
    needs=frozenset({"teacher", "labels", "class_features"}),
    asks=_asks,
    domain_texts=_domain_texts,
    options=RISEOptions,
    phases=_phases,
)
