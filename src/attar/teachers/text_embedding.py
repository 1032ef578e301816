"""Texts as token embeddings: where learnt prompts enter a frozen text tower.

CoOp puts learnt vectors in the place of words, so a text tower has to take embeddings instead of
token ids. One class per kind of tower does that; both give the teacher's own features for the
embeddings of ordinary tokens.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attar.errors import UsageError
from attar.teachers.base import Teacher

log = logging.getLogger(__name__)

Tokens = dict[str, Tensor]
"""What a tower reads of N texts: "input_ids" [N, L] and whatever else it needs, [N, L] each."""

_POOLED_AT_END = ("argmax", "eos")
"""OpenCLIP's names for taking the feature at the end-of-text token."""


class PromptEncoder(Protocol):
    """A frozen text tower that takes token embeddings; its weights get no gradient."""

    dim: int
    """D, the teacher's joint dimension."""
    width: int
    """W, the width of a token embedding."""
    depth: int
    """Layers of the tower."""

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of N texts on the tower's device; longer ones are cut, end kept."""
        ...

    def lengths(self, tokens: Tokens) -> Tensor:
        """Return how many places of each text are read [N]: L could be cut there."""
        ...

    def embed(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [N, L, W] of ordinary tokens, without gradient."""
        ...

    def encode(self, embeddings: Tensor, tokens: Tokens) -> Tensor:
        """Return float32 features [N, D], not normalised; gradients cross to the embeddings.

        Args:
            embeddings: [N, L, W] in the place of the tokens' own.
            tokens: says which places are padding and where each text ends.
        """
        ...


class OpenClipText:
    """The text side of OpenCLIP's own transformer, in either of its two model classes.

    A causal tower that is read at the end of each text gives the same whatever follows, so the
    padding after the longest text is left out.
    """

    def __init__(
        self, parts: Any, pooling: tuple[str, int | None], tokenizer: Any, dim: int
    ) -> None:
        self._parts = parts
        self._pool_type, self._eos_id = pooling
        self._tokenizer = tokenizer
        self._say_cut = _SayCut()
        self.dim = dim
        self.width = int(parts.token_embedding.weight.shape[1])
        self.depth = len(parts.transformer.resblocks)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return {"input_ids": [N, L]}, see `PromptEncoder`."""
        from attar.teachers.openclip import count_cut

        self._say_cut(count_cut(self._tokenizer, texts), texts)
        ids = self._tokenizer(list(texts)).to(self._parts.token_embedding.weight.device)
        return {"input_ids": ids[:, : int(self.lengths({"input_ids": ids}).max())]}

    def lengths(self, tokens: Tokens) -> Tensor:
        """Return where each text ends [N], or L where the tower looks at the padding too."""
        ids = tokens["input_ids"]
        if self._parts.attn_mask is None or self._pool_type not in _POOLED_AT_END:
            return torch.full((len(ids),), ids.shape[1])
        at_end = ids if self._pool_type == "argmax" else ids.eq(self._eos_id or 0).int()
        return at_end.argmax(dim=-1).cpu() + 1

    def embed(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [N, L, W] of ordinary tokens."""
        embeddings: Tensor = self._parts.token_embedding(tokens["input_ids"])
        return embeddings.detach()

    def encode(self, embeddings: Tensor, tokens: Tokens) -> Tensor:
        """Return features [N, D], see `PromptEncoder`."""
        from open_clip.transformer import text_global_pool

        parts, length = self._parts, embeddings.shape[1]
        dtype = parts.transformer.get_cast_dtype()
        mask = None if parts.attn_mask is None else parts.attn_mask[:length, :length]
        x = embeddings.to(dtype) + parts.positional_embedding[:length].to(dtype)
        x = parts.ln_final(parts.transformer(x, attn_mask=mask))
        ids = tokens["input_ids"]
        pooled: Tensor = text_global_pool(x, ids, self._pool_type, eos_token_id=self._eos_id)
        projection = parts.text_projection
        if isinstance(projection, nn.Linear):
            pooled = projection(pooled)
        elif projection is not None:
            pooled = pooled @ projection
        return pooled.float()


class PocketText:
    """MiniLM of the pocket teacher."""

    def __init__(self, tower: Any, tokenizer: Any, dim: int) -> None:
        self._tower = tower
        self._words: nn.Embedding = tower.model.embeddings.word_embeddings
        self._tokenizer = tokenizer
        self._say_cut = _SayCut()
        self.dim = dim
        self.width = self._words.embedding_dim
        self.depth = int(tower.model.config.num_hidden_layers)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return what MiniLM reads, padded to the longest text, see `PromptEncoder`."""
        self._say_cut(self._tokenizer.count_cut(texts), texts)
        device = self._words.weight.device
        return {name: tensor.to(device) for name, tensor in self._tokenizer(texts).items()}

    def lengths(self, tokens: Tokens) -> Tensor:
        """Return how many tokens each text has [N]."""
        return tokens["attention_mask"].sum(dim=1).cpu()

    def embed(self, tokens: Tokens) -> Tensor:
        """Return the embeddings [N, L, W] of ordinary tokens."""
        embeddings: Tensor = self._words(tokens["input_ids"])
        return embeddings.detach()

    def encode(self, embeddings: Tensor, tokens: Tokens) -> Tensor:
        """Return features [N, D], see `PromptEncoder`."""
        others = {name: tensor for name, tensor in tokens.items() if name != "input_ids"}
        features: Tensor = self._tower({**others, "inputs_embeds": embeddings})
        return features.float()


def prompt_encoder(teacher: Teacher) -> PromptEncoder:
    """Return the teacher's text tower as one that takes token embeddings.

    The tower is the teacher's own, in evaluation mode and without gradient for its weights.

    Raises:
        UsageError: the teacher shows no text tower, or one of another kind.
    """
    towers = teacher.towers
    if towers is None:
        raise _refused(teacher.info.name, "it does not show its text tower")
    kind = f"{type(towers.text).__module__}.{type(towers.text).__qualname__}"
    if kind not in TEXT_EMBEDDERS:
        raise _refused(teacher.info.name, f"its text tower is a {type(towers.text).__name__}")
    towers.text.eval().requires_grad_(False)
    return TEXT_EMBEDDERS[kind](teacher)


def _plain_openclip(teacher: Teacher) -> PromptEncoder:
    towers = teacher.towers
    assert towers is not None
    model: Any = towers.text.model
    if type(model).__name__ != "CLIP":
        raise _refused(teacher.info.name, f"it is OpenCLIP's {type(model).__name__}")
    pooling = (model.text_pool_type, model.text_eos_id)
    return OpenClipText(model, pooling, towers.tokenizer, teacher.info.dim)


def _custom_openclip(teacher: Teacher) -> PromptEncoder:
    towers = teacher.towers
    assert towers is not None
    tower: Any = towers.text
    if tower.cls_emb is not None or tower.use_pad_mask:
        raise _refused(teacher.info.name, "its text tower has a class token or masks its padding")
    return OpenClipText(tower, (tower.pool_type, tower.eos_id), towers.tokenizer, teacher.info.dim)


def _pocket(teacher: Teacher) -> PromptEncoder:
    towers = teacher.towers
    assert towers is not None
    return PocketText(towers.text, towers.tokenizer, teacher.info.dim)


# By name, so that OpenCLIP, which takes seconds to import, is not imported for other teachers.
TEXT_EMBEDDERS: dict[str, Callable[[Teacher], PromptEncoder]] = {
    "attar.teachers.openclip.TextTower": _plain_openclip,
    "open_clip.transformer.TextTransformer": _custom_openclip,
    "attar.teachers.pocket.TextTower": _pocket,
}
"""Class of a teacher's text tower -> what makes it take token embeddings."""


def _refused(name: str, reason: str) -> UsageError:
    return UsageError(
        f"prompts cannot be learnt through teacher {name!r}: {reason}; it works with the text "
        "towers of OpenCLIP's CLIP and CustomTextCLIP models and of the pocket teacher"
    )


class _SayCut:
    """Says the first time, and only then, that prompts were cut."""

    def __init__(self) -> None:
        self._was_said = False

    def __call__(self, cut: int, texts: Sequence[str]) -> None:
        if not cut or self._was_said:
            return
        self._was_said = True
        log.warning(
            "%d of %d prompts are longer than the teacher's context and were cut, such as %r "
            "(said once)",
            cut,
            len(texts),
            max(texts, key=len)[:60],
        )
