"""attar's own entry: one stage that joins what each of the three papers holds a piece of.

With s the student's feature of an image, v the teacher's, t_c the class features and y the label,

    L = w_i (1 - cos(s, v)) + w_t (1 - cos(s, t_y)) + w_s L_scores + w_g L_geometry.

The first two are the alignment of VL2V-ADiP (arXiv 2310.08255); its Align stage is replaced by the
ridge solution of the projection, which costs no step. L_scores = KL(q ‖ softmax(cos(s, t) / τ)) is
proximity to the class names (arXiv 2307.03135) with the label in its target,
q = λ onehot(y) + (1 - λ) softmax(cos(v, t) / τ). L_geometry = 2 KL(softmax(cos(v, v') / τ) ‖
softmax(cos(s, v') / τ)) over the batch's images v' is the pseudo score of DIME-FM
(arXiv 2303.18232). The weights may at the end be drawn back towards the start, which the fitted
projection has made a student by itself (WiSE-FT, arXiv 2109.01903). What the terms are worth was
measured on emoji before any other data: docs/results/own-entry.md.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import AttarError
from attar.losses import pseudo_score_distillation
from attar.methods.base import Method, Objective, Phase, Sizes, Views
from attar.methods.gathering import joined
from attar.methods.parts import (
    ABOVE_0_TO_1,
    NO_LABEL,
    class_mixture,
    labels_of,
    require,
    teacher_features,
)
from attar.types import Batch, Loss, Outputs


@dataclass(frozen=True, kw_only=True)
class AttarOptions:
    """Options of `attar`: a weight for each term (0: off)."""

    image: float = 1.0
    """w_i, of the distance to the teacher's image feature."""
    text: float = 1.0
    """w_t, of the distance to the label's text; without a label, to the teacher's class mixture."""
    scores: float = 1.0
    """w_s, of the divergence between the scores of all classes."""
    geometry: float = 1.0
    """w_g, of the divergence between the similarities to the batch's images."""
    label_share: float = 0.5
    """λ, the label's share in the target of the scores; an unlabelled image has the teacher's."""
    temperature: float = 0.07
    """τ, which divides the cosines of both divergences."""
    interpolation: float = 1.0
    """α of WiSE-FT: the student becomes (1 - α) its start + α what training reached; 1: the
    latter."""
    views: Views = "clean"
    """What the teacher saw of each image: see `vl2v-adip`."""

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("image", "text", "scores", "geometry")}
        for name, value in weights.items():
            require(0 <= value < math.inf, name, value, "0 or more")
        require(any(weights.values()), "image", self.image, "above 0 when all other weights are 0")
        require(0 <= self.label_share <= 1, "label_share", self.label_share, "in 0 ... 1")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "above 0")
        require(0 < self.interpolation <= 1, "interpolation", self.interpolation, ABOVE_0_TO_1)


class AttarObjective(Objective):
    """The weighted sum of the terms that have a weight, over the joined batch of all processes."""

    def __init__(self, options: AttarOptions, scale: float = 100.0) -> None:
        """`scale` is what the teacher multiplies cosines by, for the text of unlabelled images."""
        super().__init__()
        self.options = options
        self.scale = scale

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the sum; every term is logged unweighted."""
        if class_features is None:
            raise AttarError("attar needs class features")
        options, (own, batch) = self.options, joined(outputs, batch)
        teacher, labels = teacher_features(batch, "attar"), labels_of(batch, "attar")
        terms: dict[str, Tensor] = {}
        if options.image:
            terms["image"] = _distance(own, teacher)
        if options.text:
            terms["text"] = _distance(own, self._texts(teacher, class_features, labels))
        if options.scores:
            target = self._scores(teacher, class_features, labels)
            logits = _cosines(own, class_features) / options.temperature
            terms["scores"] = _divergence(target, logits)
        if options.geometry:
            terms["geometry"] = pseudo_score_distillation(own, teacher, options.temperature, 1.0)
        total = torch.stack([getattr(options, name) * term for name, term in terms.items()]).sum()
        return Loss(total=total, terms=terms)

    def _texts(self, teacher: Tensor, class_features: Tensor, labels: Tensor) -> Tensor:
        """Return [B, D]: each label's text, or the teacher's mixture where there is no label."""
        mixture = class_mixture(teacher, class_features, self.scale)
        # A gathered row for "-1" would be the last class.
        named = class_features[labels.clamp_min(0)]
        return torch.where((labels != NO_LABEL)[:, None], named, mixture)

    def _scores(self, teacher: Tensor, class_features: Tensor, labels: Tensor) -> Tensor:
        """Return the target q [B, C]; no gradient passes."""
        with torch.no_grad():
            said = (_cosines(teacher, class_features) / self.options.temperature).softmax(dim=-1)
            named = F.one_hot(labels.clamp_min(0), len(class_features)).to(said.dtype)
            share = self.options.label_share * (labels != NO_LABEL).to(said.dtype)[:, None]
            return share * named + (1 - share) * said


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1) @ F.normalize(columns, dim=-1).T


def _distance(own: Tensor, target: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(own, target, dim=-1).mean()


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(target ‖ softmax(logits)), summed over classes, mean over the batch."""
    return F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean")


def _phases(options: AttarOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    return (
        Phase(
            name="distill",
            objective=AttarObjective(options, sizes.logit_scale),
            trainable="all",
            steps=total_steps,
            views=options.views,
            interpolation=options.interpolation,
        ),
    )


METHOD = Method(
    name="attar",
    summary="alignment, scores and geometry in one stage, from a fitted projection; needs labels",
    paper="attar's own: alignment as in Addepalli et al., CVPR 2024; scores as "
    "in Li et al., ICCV 2023; geometry as in Sun et al., ICCV 2023",
    needs=frozenset({"teacher", "labels", "class_features"}),
    options=AttarOptions,
    phases=_phases,
    student={"projection": "fitted"},
)
