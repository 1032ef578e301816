"""Li et al., ICCV 2023 (arXiv 2307.03135): open-vocabulary generalisation to unseen classes.

The loss is a weighted sum of named terms, each on or off, each working whichever others are on:

    L = w_cls L_cls + w_mse L_mse + w_im-cst L_im-cst + w_vlprox L_vlprox + w_cap L_cap,

every weight 1 in the paper. Visual-space imitation: L_mse (eq. 2) and L_im-cst (eq. 3). Coherence
between vision and language: L_vlprox (eq. 6). Language enrichment: descriptions in the class
list, captions (L_cap, eq. 8), prompts learnt through the teacher's text tower (CoOp).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attar.errors import AttarError, UsageError
from attar.losses import (
    aligned,
    caption_contrastive,
    classification,
    feature_mse,
    image_contrastive,
    proximity,
)
from attar.methods.base import Method, Need, Objective, Phase, Sizes, Views
from attar.methods.gathering import joined
from attar.methods.parts import require
from attar.types import Batch, Loss, Outputs

Preset = Literal["code", "paper"]


@dataclass(frozen=True, kw_only=True)
class LiOptions:
    """Options of `li2023`: a weight for each term (0: off), and how each is computed."""

    preset: Preset = "code"
    """Where the printed equations and the official code differ: `code` or `paper`."""
    classification: float = 1.0
    """Weight of L_cls (eq. 1): cross-entropy against the class features."""
    feature_mse: float = 0.0
    """Weight of L_mse (eq. 2): squared distance to the teacher's image feature."""
    image_contrastive: float = 1.0
    """Weight of L_im-cst (eq. 3): which of the batch's teacher features belongs to the image."""
    proximity: float = 1.0
    """Weight of L_vlprox (eq. 6): the teacher's distribution over its nearest classes."""
    caption: float = 0.0
    """Weight of L_cap (eq. 8): which of the batch's captions belongs to the image."""
    temperature: float = 0.07
    """Divides cosines in all terms (in L_cap with the preset `paper` only)."""
    nearest: int = 256
    """k of L_vlprox: how many of the teacher's nearest classes count."""
    filter_proximity: bool = True
    """L_vlprox only on images that the teacher puts into their labelled class."""
    filter_contrastive: bool = False
    """The same filter on L_im-cst (Table 9: it hurts)."""
    bidirectional: bool | None = None
    """L_im-cst in both directions; by default as the preset has it (`code`: yes)."""
    context: int = 0
    """Prompt vectors learnt in front of every class name (CoOp); the paper learns 8."""
    views: Views = "clean"
    """What the teacher saw of each image: see `vl2v-adip`."""

    def __post_init__(self) -> None:
        weights = [getattr(self, name) for name in TERMS]
        if min(weights) < 0 or not any(weights):
            raise UsageError(
                f"--method.{', --method.'.join(n.replace('_', '-') for n in TERMS)}: give "
                "weights of at least 0, not all of them 0"
            )
        for name, weight in zip(TERMS, weights, strict=True):
            require(weight < math.inf, name, weight, "a number")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "above 0")
        for name, least in (("nearest", 1), ("context", 0)):
            value = getattr(self, name)
            require(value >= least, name, value, f"at least {least}")
        if self.context and not (self.classification or self.proximity):
            # The other terms never look at the classes: nothing would teach the prompts, and
            # data-parallel training stops at a parameter without a gradient.
            raise UsageError(
                f"--method.context {self.context} is learnt by --method.classification or "
                "--method.proximity, and both are 0: give one a weight, or leave the context out"
            )


@dataclass(frozen=True)
class _Said:
    """What is known of a batch: by the student, by the teacher, by the labels."""

    student: Tensor
    """[B, D]"""
    batch: Batch
    class_features: Tensor | None

    @property
    def teacher(self) -> Tensor:
        """[B, D] the teacher's image features."""
        if self.batch.image_features is None:
            raise AttarError("li2023 needs the teacher's image features")
        return self.batch.image_features

    @property
    def classes(self) -> Tensor:
        """[C, D]."""
        if self.class_features is None:
            raise AttarError("li2023 needs class features")
        return self.class_features

    @property
    def labels(self) -> Tensor:
        """[B], -1 for none."""
        if self.batch.labels is None:
            return torch.full((len(self.student),), -1, device=self.student.device)
        return self.batch.labels

    @property
    def captions(self) -> Tensor:
        """[B, D] zeros for an image without a caption."""
        if self.batch.caption_features is None:
            raise AttarError("li2023's caption term needs the features of captions")
        return self.batch.caption_features


def _classification(options: LiOptions, said: _Said) -> Tensor:
    return classification(said.student, said.classes, said.labels, options.temperature)


def _feature_mse(options: LiOptions, said: _Said) -> Tensor:
    return feature_mse(said.student, said.teacher)


def _image_contrastive(options: LiOptions, said: _Said) -> Tensor:
    paper = options.preset == "paper"
    both = not paper if options.bidirectional is None else options.bidirectional
    keep = None
    if options.filter_contrastive:
        keep = aligned(said.teacher, said.classes, said.labels)
    # Eq. 3 has -||s - v||^2 / tau = (2 cos - 2) / tau: cosines at half the temperature.
    temperature = options.temperature / 2 if paper else options.temperature
    return image_contrastive(said.student, said.teacher, temperature, both, keep)


def _proximity(options: LiOptions, said: _Said) -> Tensor:
    return proximity(
        said.student,
        said.teacher,
        said.classes,
        said.labels if options.filter_proximity else None,
        k=options.nearest,
        temperature=options.temperature,
        average="batch" if options.preset == "paper" else "survivors",
    )


def _caption(options: LiOptions, said: _Said) -> Tensor:
    there = said.captions.square().sum(dim=-1) > 0
    if not there.any():
        return said.student.sum() * 0
    paper = options.preset == "paper"
    return caption_contrastive(
        said.student[there],
        said.captions[there],
        said.labels[there],
        # The official code leaves the temperature out.
        temperature=options.temperature if paper else 1.0,
        positive_in_denominator=not paper,
    )


TERMS: Mapping[str, Callable[[LiOptions, _Said], Tensor]] = {
    "classification": _classification,
    "feature_mse": _feature_mse,
    "image_contrastive": _image_contrastive,
    "proximity": _proximity,
    "caption": _caption,
}
"""Every term by the option that weighs it."""


class LiObjective(Objective):
    """The weighted sum of the terms whose weight is not 0, over the joined batch of all processes.

    Not only are there more images to contrast: the mean over images that have a label, or that pass
    a filter, is no mean of the processes' means.
    """

    def __init__(self, options: LiOptions) -> None:
        super().__init__()
        self.options = options

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the sum; every term is logged unweighted, the filter's share as `aligned`."""
        said = _Said(*joined(outputs, batch), class_features)
        weights = {name: weight for name in TERMS if (weight := getattr(self.options, name))}
        terms = {name: TERMS[name](self.options, said) for name in weights}
        total = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        if class_features is not None and said.labels.ndim == 1:
            known = said.labels >= 0
            keep = aligned(said.teacher, said.classes, said.labels)
            terms["aligned"] = keep.float().sum() / known.sum().clamp_min(1)
        return Loss(total=total, terms=terms)


def _asks(options: LiOptions) -> frozenset[Need]:
    needs: set[Need] = set()
    if options.classification or options.proximity or options.context:
        needs.add("class_features")
    filtered = (options.filter_proximity and options.proximity) or options.filter_contrastive
    if options.classification or filtered:
        needs.add("labels")
    if options.caption:
        needs.add("captions")
    return frozenset(needs)


def _phases(options: LiOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    return (
        Phase(
            name="train",
            objective=LiObjective(options),
            trainable="all",
            steps=total_steps,
            views=options.views,
        ),
    )


METHOD = Method(
    name="li2023",
    summary="classification, image contrast and proximity in the teacher's space; unseen classes",
    paper="Li et al., ICCV 2023 (arXiv 2307.03135)",
    needs=frozenset({"teacher"}),
    asks=_asks,
    context=lambda options: options.context,
    options=LiOptions,
    phases=_phases,
)
