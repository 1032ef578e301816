"""CoOp: context vectors in the place of a prompt's words, learnt through the frozen text tower.

Zhou et al., IJCV 2022 (arXiv 2109.01134), as Li et al. (ICCV 2023) use it: one context for all
classes, independent of the image, [SOS][context x 8][name (and description).][EOS].
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attar.errors import UsageError
from attar.methods.base import ClassFeatures
from attar.teachers.text_embedding import PromptEncoder, Tokens

INITIAL_STD = 0.02
KEPT_BYTES = 2e9
"""Activations of the text tower that are kept for the backward pass; the rest is made again."""
_KEPT_OF_A_PLACE = 12
"""float32 numbers that a layer keeps of a place, in widths of an embedding; 11 of MiniLM."""


class LearntPrompts(ClassFeatures):
    """Class features of prompts whose first words are learnt.

    The context vectors are the only parameters and the only state. The text tower is kept out of
    the module tree: it is neither trained, nor saved, nor switched to training mode, and gradients
    cross it to the context alone.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        texts: Sequence[str],
        *,
        length: int = 8,
        seed: int = 0,
        chunk: int = 64,
        keep: float = KEPT_BYTES,
    ) -> None:
        """Draw the context from N(0, 0.02²) and place it before each class's text.

        Args:
            encoder: the teacher's frozen text tower.
            texts: [C] one a class, its name or its name and description.
            length: context vectors, shared by all classes.
            seed: of the initial context.
            chunk: classes that pass the tower together; those with texts of like length do, so
                that little padding is computed.
            keep: bytes of the tower's activations, in fp32 and about, that are kept for the
                backward pass. The chunks beyond them are computed again there, one at a time.

        Raises:
            UsageError: too many context vectors for what the tower reads.
        """
        super().__init__()
        if length < 1 or chunk < 1:
            raise UsageError(f"context of {length}, chunks of {chunk}: both must be at least 1")
        self._encoder = (encoder,)
        self._texts = tuple(texts)
        self._chunk = chunk
        self._keep = keep
        tokens, self._start = _place_context(encoder, texts, length)
        self._parts, self._places = _by_length(encoder, tokens, chunk)
        generator = torch.Generator().manual_seed(seed)
        initial = torch.randn(length, encoder.width, generator=generator) * INITIAL_STD
        self.context = nn.Parameter(initial)

    def forward(self) -> Tensor:
        """Return the unit class features [C, D], differentiable in the context."""
        (encoder,) = self._encoder
        several = len(self._parts) > 1  # computing a lone one again would save nothing
        features, kept = [], 0.0
        for tokens in self._parts:
            kept += activation_bytes(encoder, tokens)
            if kept > self._keep and several and torch.is_grad_enabled():
                part = checkpoint(self._encode, self.context, tokens, use_reentrant=False)
            else:
                part = self._encode(self.context, tokens)
            features.append(part)
        return torch.cat(features)[self._places].to(self.context.device)

    def _encode(self, context: Tensor, tokens: Tokens) -> Tensor:
        """Return the unit features of some classes, computed where the tower is."""
        (encoder,) = self._encoder
        words = encoder.embed(tokens)
        learnt = context.to(words).expand(len(words), -1, -1)
        end = self._start + len(context)
        embeddings = torch.cat([words[:, : self._start], learnt, words[:, end:]], dim=1)
        return F.normalize(encoder.encode(embeddings, tokens), dim=-1)

    def for_classes(self, texts: Sequence[str]) -> "LearntPrompts":
        """Return the prompts of other classes (or descriptions) with this very context."""
        (encoder,) = self._encoder
        other = LearntPrompts(
            encoder,
            texts,
            length=len(self.context),
            chunk=self._chunk,
            keep=self._keep,
        )
        other.context = self.context
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> "LearntPrompts":
        """Copy the context; the frozen text tower is shared."""
        other = self.for_classes(self._texts)
        other.context = copy.deepcopy(self.context, memo)
        return other


def _place_context(encoder: PromptEncoder, texts: Sequence[str], length: int) -> tuple[Tokens, int]:
    """Tokenise each class's prompt and return the tokens and the context's first place.

    Two different words stand for the context in turn; the places where the tokens differ are its
    places, whatever a tokenizer puts before the text.
    """
    ended = [text if text.rstrip().endswith(".") else f"{text.rstrip()}." for text in texts]
    tokens, others = (
        encoder.tokenize([" ".join([word] * length + [text]) for text in ended]) for word in "XQ"
    )
    ids = tokens["input_ids"]
    differs = ids != others["input_ids"]
    places = differs[0].nonzero().flatten().tolist()
    start = places[0] if places else 0
    whole = places == list(range(start, start + length)) and bool((differs == differs[0]).all())
    if not whole or (len(set(ended)) > 1 and bool((ids == ids[0]).all())):
        raise UsageError(
            f"{length} context vectors leave no room for the class names in the {ids.shape[1]} "
            "tokens that the teacher reads: use fewer"
        )
    return tokens, int(start)


def activation_bytes(encoder: PromptEncoder, tokens: Tokens) -> float:
    """Return about how much the backward pass needs of a tower that read these tokens, in fp32."""
    places = tokens["input_ids"].numel()
    return 4.0 * _KEPT_OF_A_PLACE * encoder.width * encoder.depth * places


def _by_length(encoder: PromptEncoder, tokens: Tokens, chunk: int) -> tuple[list[Tokens], Tensor]:
    """Return chunks of texts of like length, each cut to its longest, and where each text went."""
    lengths = encoder.lengths(tokens)
    order = lengths.argsort(stable=True)
    parts = [
        {name: tensor[rows, : int(lengths[rows].max())] for name, tensor in tokens.items()}
        for rows in torch.split(order, chunk)
    ]
    return parts, order.argsort()
