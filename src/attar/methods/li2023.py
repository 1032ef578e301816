"""Li et al., ICCV 2023 (arXiv 2307.03135): open-vocabulary generalisation to unseen classes.

The loss is a weighted sum of named terms, each on or off, each working whichever others are on:

    L = w_cls L_cls + w_mse L_mse + w_im-cst L_im-cst + w_vlprox L_vlprox + w_cap L_cap,

every weight 1 in the paper. Visual-space imitation: L_mse (eq. 2) and L_im-cst (eq. 3). Coherence
between vision and language: L_vlprox (eq. 6). Language enrichment: descriptions in the class
list, captions (L_cap, eq. 8), prompts learnt through the teacher's text tower (CoOp).
"""

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
        weights = (*(getattr(self, name) for name in _TERMS),)
        if min(weights) < 0 or not any(weights):
            raise UsageError(
                f"--method.{', --method.'.join(n.replace('_', '-') for n in _TERMS)}: give "
                "weights of at least 0, not all of them 0"
            )
        if self.temperature <= 0:
            raise UsageError(f"--method.temperature {self.temperature}: must be above 0")
        for name, least in (("nearest", 1), ("context", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--method.{name} {getattr(self, name)}: give at least {least}")


_TERMS = ("classification", "feature_mse", "image_contrastive", "proximity", "caption")


class LiObjective(Objective):
    """The weighted sum of the terms whose weight is not 0."""

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
        options, terms = self.options, {}
        for name in _TERMS:
            if getattr(options, name):
                terms[name] = getattr(self, f"_{name}")(outputs.features, batch, class_features)
        total = torch.stack([getattr(options, name) * term for name, term in terms.items()]).sum()
        if class_features is not None and batch.labels is not None:
            known = batch.labels >= 0
            keep = aligned(_teacher(batch), class_features, batch.labels) & known
            terms["aligned"] = keep.float().sum() / known.sum().clamp_min(1)
        return Loss(total=total, terms=terms)

    def _classification(
        self, student: Tensor, batch: Batch, class_features: Tensor | None
    ) -> Tensor:
        classes, temperature = _classes(class_features), self.options.temperature
        return classification(student, classes, _labels(batch), temperature)

    def _feature_mse(self, student: Tensor, batch: Batch, class_features: Tensor | None) -> Tensor:
        return feature_mse(student, _teacher(batch))

    def _image_contrastive(
        self, student: Tensor, batch: Batch, class_features: Tensor | None
    ) -> Tensor:
        options = self.options
        paper = options.preset == "paper"
        both = not paper if options.bidirectional is None else options.bidirectional
        keep = None
        if options.filter_contrastive:
            keep = aligned(_teacher(batch), _classes(class_features), _labels(batch))
        # Eq. 3 has -||s - v||^2 / tau = (2 cos - 2) / tau: cosines at half the temperature.
        temperature = options.temperature / 2 if paper else options.temperature
        return image_contrastive(student, _teacher(batch), temperature, both, keep)

    def _proximity(self, student: Tensor, batch: Batch, class_features: Tensor | None) -> Tensor:
        options = self.options
        return proximity(
            student,
            _teacher(batch),
            _classes(class_features),
            _labels(batch) if options.filter_proximity else None,
            k=options.nearest,
            temperature=options.temperature,
            average="batch" if options.preset == "paper" else "survivors",
        )

    def _caption(self, student: Tensor, batch: Batch, class_features: Tensor | None) -> Tensor:
        if batch.caption_features is None:
            raise AttarError("li2023's caption term needs the features of captions")
        there = batch.caption_features.square().sum(dim=-1) > 0
        if not there.any():
            return student.sum() * 0
        paper = self.options.preset == "paper"
        return caption_contrastive(
            student[there],
            batch.caption_features[there],
            _labels(batch)[there],
            # The official code leaves the temperature out.
            temperature=self.options.temperature if paper else 1.0,
            positive_in_denominator=not paper,
        )


def _teacher(batch: Batch) -> Tensor:
    if batch.image_features is None:
        raise AttarError("li2023 needs the teacher's image features")
    return batch.image_features


def _classes(class_features: Tensor | None) -> Tensor:
    if class_features is None:
        raise AttarError("li2023 needs class features")
    return class_features


def _labels(batch: Batch) -> Tensor:
    """Return the labels [B], -1 for none."""
    if batch.labels is None:
        return torch.full((len(batch.images),), -1, device=batch.images.device)
    return batch.labels


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
