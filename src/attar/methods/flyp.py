"""FLYP: fine-tune a vision-language model as it was pretrained, image against prompt.

Goyal et al., CVPR 2023 (arXiv 2212.00638). Each image of a batch is paired with its class's prompt,
and both towers are trained with CLIP's symmetric contrastive loss,

    L = ½ CE(e^a u tᵀ) + ½ CE(e^a t uᵀ),

u the images' unit features, t those of their classes' prompts, the pairs on the diagonal; a is
learnt from the teacher's own scale and at most ln 100. Images of one class are negatives of each
other, as in the paper. The classifier is the tuned text tower's class features.

The text tower that is trained is a copy: the teacher stays what it is.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attar.errors import AttarError
from attar.methods.base import ClassFeatures, Method, Objective, Phase, Sizes
from attar.methods.parts import labels_of, learnt_scale
from attar.prompts import mean_class_features
from attar.teachers.base import Towers
from attar.types import Batch, Loss, Outputs


class TrainedTexts(ClassFeatures):
    """Class features of a text tower that is trained itself."""

    def __init__(
        self,
        tower: nn.Module,
        tokenizer: Callable[..., Any],
        texts: Sequence[Sequence[str]],
        *,
        chunk: int = 64,
    ) -> None:
        """Give the tower the prompts of some classes.

        Args:
            tower: what the tokenizer returns to features [N, D]; its own parameters are trained.
            tokenizer: a list of strings to the tower's input.
            texts: [C] the prompts of each class.
            chunk: prompts that pass the tower together; where there are more, no activations are
                kept and each chunk is computed again in the backward pass.
        """
        super().__init__()
        self.tower = tower
        self._tokenizer = tokenizer
        self._chunk = chunk
        self._counts = [len(of_class) for of_class in texts]
        flat = [text for of_class in texts for text in of_class]
        self._tokens = [tokenizer(flat[i : i + chunk]) for i in range(0, len(flat), chunk)]

    @classmethod
    def copy_of(cls, towers: Towers, texts: Sequence[Sequence[str]]) -> "TrainedTexts":
        """Copy a teacher's text tower; of the copy, what a text passes through is trained.

        The image tower, which may be part of the same module, stays behind.
        """
        tower = copy.deepcopy(towers.text, {id(towers.image): nn.Identity()})
        prompts = cls(tower.eval(), towers.tokenizer, texts)
        every = [p.requires_grad_() for p in tower.parameters() if p.is_floating_point()]
        gradients = torch.autograd.grad(prompts().sum(), every, allow_unused=True)
        for parameter, gradient in zip(every, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        return prompts

    def forward(self) -> Tensor:
        """Return the unit class features [C, D], differentiable in the tower's weights."""
        again = len(self._tokens) > 1 and torch.is_grad_enabled()
        parts = [
            checkpoint(self._encode, tokens, use_reentrant=False) if again else self._encode(tokens)
            for tokens in self._tokens
        ]
        return mean_class_features(torch.cat(parts), self._counts)

    def _encode(self, tokens: Any) -> Tensor:
        features: Tensor = self.tower(tokens.to(next(self.tower.parameters()).device))
        return features.float()

    def for_classes(self, texts: Sequence[Sequence[str]]) -> "TrainedTexts":
        """Return the class features of other classes under this very tower."""
        return TrainedTexts(self.tower, self._tokenizer, texts, chunk=self._chunk)


@dataclass(frozen=True, kw_only=True)
class FLYPOptions:
    """`flyp` has no options of its own: the prompts are those of --templates."""


class ImagePromptContrast(Objective):
    """CLIP's loss between images and their classes' prompts; unlabelled images do not count."""

    def __init__(self, scale: float) -> None:
        """Begin with a = ln of the teacher's scale."""
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        """Return the mean of both directions (zero without a labelled image)."""
        if class_features is None:
            raise AttarError("flyp needs class features")
        labels = labels_of(batch, "flyp")
        known = labels >= 0
        images = F.normalize(outputs.features[known], dim=-1)
        prompts = F.normalize(class_features, dim=-1)[labels[known]]
        logits = learnt_scale(self.log_scale) * images @ prompts.T
        to_prompt, to_image = _of_pairs(logits), _of_pairs(logits.T)
        terms = {"image_to_prompt": to_prompt, "prompt_to_image": to_image}
        return Loss(total=(to_prompt + to_image) / 2, terms=terms)


def _of_pairs(logits: Tensor) -> Tensor:
    """Return the mean cross-entropy of [n, n] with the diagonal as the targets; zero for n = 0."""
    return -logits.log_softmax(dim=1).diagonal().sum() / max(len(logits), 1)


def _phases(options: FLYPOptions, total_steps: int, sizes: Sizes) -> tuple[Phase, ...]:
    objective = ImagePromptContrast(sizes.logit_scale)
    return (Phase(name="fine-tune", objective=objective, trainable="all", steps=total_steps),)


METHOD = Method(
    name="flyp",
    summary="white box: both towers of the teacher, trained as they were pretrained, on prompts",
    paper="Goyal et al., CVPR 2023 (arXiv 2212.00638)",
    needs=frozenset({"teacher", "labels", "class_features"}),
    white_box=True,
    trains_texts=True,
    options=FLYPOptions,
    phases=_phases,
    student={"freeze_bn": True},
)
