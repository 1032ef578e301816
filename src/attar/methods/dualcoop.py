"""Several labels an image: Li et al.'s method for scenes, and its closed-set baseline.

Li et al. (ICCV 2023, arXiv 2307.03135, robot application): DualCoOp's positive and negative prompts
(Sun et al., NeurIPS 2022) are compared with every region of the student's last feature map; an
asymmetric loss trains the probabilities, and the whole image's feature is drawn to the teacher's.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attar.errors import AttarError
from attar.losses import image_contrastive
from attar.methods.base import ClassFeatures, Method, Objective, Phase, Sizes, Views
from attar.methods.gathering import gather_with_gradients
from attar.methods.parts import require
from attar.methods.prompt_learning import KEPT_BYTES, LearntPrompts
from attar.multilabel import asymmetric_loss, region_probabilities
from attar.teachers.text_embedding import PromptEncoder
from attar.types import Batch, Loss, Outputs


class PositiveNegativePrompts(ClassFeatures):
    """Two learnt contexts a class: "it is there" and "it is not there"."""

    def __init__(self, positive: LearntPrompts, negative: LearntPrompts) -> None:
        super().__init__()
        self.positive = positive
        self.negative = negative

    @classmethod
    def draw(
        cls,
        encoder: PromptEncoder,
        texts: Sequence[str],
        *,
        length: int = 8,
        seed: int = 0,
    ) -> "PositiveNegativePrompts":
        """Draw both contexts; `texts` [C] (names, with descriptions or not) serve both."""
        positive, negative = (
            LearntPrompts(encoder, texts, length=length, seed=one, keep=KEPT_BYTES / 2)
            for one in (2 * seed, 2 * seed + 1)
        )
        return cls(positive, negative)

    def forward(self) -> Tensor:
        """Return unit features [2 C, D]: the positive prompts of all classes, then the negative."""
        return torch.cat([self.positive(), self.negative()])

    def for_classes(self, texts: Sequence[str]) -> "PositiveNegativePrompts":
        """Return the prompts of other classes with these very contexts."""
        return PositiveNegativePrompts(
            self.positive.for_classes(texts), self.negative.for_classes(texts)
        )


@dataclass(frozen=True, kw_only=True)
class MultiLabelOptions:
    """Options of `li2023-multilabel`."""

    image_contrastive: float = 1.0
    """Weight of the contrastive term between student and teacher images; 0 turns it off."""
    temperature: float = 0.07
    """Temperature of regions, prompts and image contrast."""
    context: int = 8
    """Learnt context vectors of the positive and of the negative prompt."""
    gamma_negative: float = 2.0
    """How much easy negatives are discounted."""
    gamma_positive: float = 1.0
    """How much easy positives are discounted."""
    clip: float = 0.05
    """Negatives with a probability up to this cost nothing."""
    views: Views = "clean"
    """`clean`: the teacher saw the clean image; `same`: recorded views (`--embed.views K`), student
    and teacher see the same; `online`: the teacher is asked about every augmented image."""

    def __post_init__(self) -> None:
        for name in ("image_contrastive", "gamma_negative", "gamma_positive"):
            value = getattr(self, name)
            require(0 <= value < math.inf, name, value, "0 or more")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "above 0")
        require(0 <= self.clip < 1, "clip", self.clip, "0 or more, below 1")
        require(self.context >= 1, "context", self.context, "at least 1")


class MultiLabelObjective(Objective):
    """Asymmetric loss on the probability of each label."""

    options: "MultiLabelOptions | ClosedSetOptions"

    @abc.abstractmethod
    def probabilities(self, outputs: Outputs, class_features: Tensor | None) -> Tensor:
        """Return the probability [B, C] that each label is in the image."""

    def asymmetric(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of probabilities [B, C] against multi-hot targets [B, C]."""
        options = self.options
        return asymmetric_loss(
            probabilities, targets, options.gamma_negative, options.gamma_positive, options.clip
        )


class MultiLabelLi2023(MultiLabelObjective):
    """Asymmetric loss on region probabilities, and image contrast over all processes' images.

    It owns the probability bias; `class_features` are [2 C, D], positive prompts then negative.
    """

    needs_regions = True
    options: MultiLabelOptions

    def __init__(self, options: MultiLabelOptions) -> None:
        super().__init__()
        self.options = options
        self.bias = nn.Parameter(torch.zeros(()))

    def probabilities(self, outputs: Outputs, class_features: Tensor | None) -> Tensor:
        """Return the probability [B, C] that each label is in the image."""
        if outputs.regions is None or class_features is None:
            raise AttarError("li2023-multilabel needs regions of the student and class features")
        positive, negative = class_features.chunk(2)
        return region_probabilities(
            outputs.regions, positive, negative, self.bias, self.options.temperature
        )

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the loss of a batch with multi-hot labels [B, C]."""
        options, targets = self.options, _multi_hot(batch, "li2023-multilabel")
        if class_features is not None and len(class_features) != 2 * targets.shape[1]:
            raise AttarError(
                f"li2023-multilabel needs a positive and a negative prompt for each of "
                f"{targets.shape[1]} labels, not {len(class_features)} class features"
            )
        total = self.asymmetric(self.probabilities(outputs, class_features), targets)
        terms = {"classification": total, "probability_bias": torch.tanh(self.bias).detach()}
        if options.image_contrastive:
            if batch.image_features is None:
                raise AttarError("image contrast needs the teacher's image features in the batch")
            # The other term is a plain mean over images, for which none need be gathered.
            own = gather_with_gradients(outputs.features)
            teacher = gather_with_gradients(batch.image_features)
            term = image_contrastive(own, teacher, options.temperature)
            terms["image_contrastive"] = term
            total = total + options.image_contrastive * term
        return Loss(total=total, terms=terms)


@dataclass(frozen=True, kw_only=True)
class ClosedSetOptions:
    """Options of `closed-set-multilabel`."""

    gamma_negative: float = 2.0
    """How much easy negatives are discounted."""
    gamma_positive: float = 1.0
    """How much easy positives are discounted."""
    clip: float = 0.05
    """Negatives with a probability up to this cost nothing."""

    def __post_init__(self) -> None:
        MultiLabelOptions(
            gamma_negative=self.gamma_negative, gamma_positive=self.gamma_positive, clip=self.clip
        )


class ClosedSet(MultiLabelObjective):
    """Asymmetric loss on the sigmoid of the network's own logits [B, C]."""

    def __init__(self, options: ClosedSetOptions) -> None:
        super().__init__()
        self.options = options

    def probabilities(self, outputs: Outputs, class_features: Tensor | None) -> Tensor:
        """Return the probability [B, C] that each label is in the image."""
        return torch.sigmoid(outputs.features)

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the loss of a batch with multi-hot labels [B, C]."""
        targets = _multi_hot(batch, "closed-set-multilabel")
        term = self.asymmetric(self.probabilities(outputs, class_features), targets)
        return Loss(total=term, terms={"classification": term})


def _multi_hot(batch: Batch, method: str) -> Tensor:
    if batch.labels is None or batch.labels.ndim != 2:
        raise AttarError(
            f"{method} needs several labels an image: a manifest with a labels column (a|b|c)"
        )
    return batch.labels


def _phases(options: MultiLabelOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    phase = Phase(
        name="distill",
        objective=MultiLabelLi2023(options),
        trainable="all",
        steps=total_steps,
        views=options.views,
    )
    return (phase,)


def _closed_set_phases(
    options: ClosedSetOptions, total_steps: int, sizes: Sizes
) -> tuple[Phase, ...]:
    objective = ClosedSet(options)
    return (Phase(name="train", objective=objective, trainable="all", steps=total_steps),)


METHOD = Method(
    name="li2023-multilabel",
    summary="positive and negative prompts learnt on image regions; needs several labels an image",
    paper="Li et al., ICCV 2023 (arXiv 2307.03135), robot application",
    needs=frozenset({"teacher", "label_sets", "class_features"}),
    options=MultiLabelOptions,
    phases=_phases,
    context=lambda options: int(options.context),
    paired_prompts=True,
)

CLOSED_SET = Method(
    name="closed-set-multilabel",
    summary="plain classifier without a teacher, several labels an image; the baseline",
    paper="Ridnik et al., ICCV 2021 (arXiv 2009.14119); closed-set of Li et al., ICCV 2023",
    needs=frozenset({"label_sets"}),
    options=ClosedSetOptions,
    phases=_closed_set_phases,
    head="classes",
)
