"""What the loaders of every teacher share: specs, identity, wrong-use lines and frozen towers."""

import hashlib
import importlib.util
import json
import logging
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attar.errors import UsageError
from attar.teachers.base import TeacherInfo, Towers

log = logging.getLogger(__name__)

TEXT_BATCH = 256
"""Texts encoded at once."""

PROBE_TEXTS = ("a photo of a dog", "Two CATS, by the red house's door!")
"""Texts whose token ids stand for a tokenizer in a teacher's identity."""

RESEARCH_ONLY = {
    "mobileclip": "Apple Machine Learning Research model licence",
    "datacompdr": "Apple Machine Learning Research model licence",
    "dfndr": "Apple Machine Learning Research model licence",
    "metaclip": "CC BY-NC 4.0",
}
"""A part of a model's or a tag's name -> the licence its publisher puts on the weights."""


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A teacher that was asked for, checked but not loaded."""

    kind: str
    """A key of `registry.TEACHERS`."""
    value: str
    """What the kind's loader takes: a model and tag, a hub name, a folder, a domain."""
    name: str
    """One spelling for all ways to write the same teacher, e.g. "ViT-B-32/openai"."""
    licence: str | None = None
    """One line for the user when the weights are for research only, else None."""


def licence_line(name: str) -> str | None:
    """Return the line to show for weights known to be research-only, else None."""
    for part, licence in RESEARCH_ONLY.items():
        if part in name.lower():
            return (
                f"the weights of {name} are for research only ({licence}); "
                "this binds what is distilled from them too: read their terms before you ship it"
            )
    return None


def weights_identity(state: Mapping[str, Tensor], *configs: Any) -> str:
    """Return the sha256 (hex) of tensors in name order (name, dtype, shape, bytes) and configs.

    Configs are JSON values; equal identities mean equal features for equal files.
    """
    digest = hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def one_line(error: BaseException) -> str:
    """Return an exception's first non-empty line, or its type when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[0], 240, placeholder=" …") if lines else type(error).__name__


def cannot_fetch(name: str, error: BaseException) -> UsageError:
    """Return the error for weights that are neither on this machine nor to be had from a hub."""
    return UsageError(
        f"teacher {name!r} is not on this machine and could not be fetched ({one_line(error)}); "
        "give a folder with 'local-dir:PATH' or 'hf:PATH', run once with a network to fill the "
        "cache, or use the offline teacher 'pocket'"
    )


def require_transformers(name: str) -> None:
    """Refuse a teacher that needs transformers where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(
            f"teacher {name!r} needs transformers: run pip install 'attar[huggingface]'"
        )


class FrozenTeacher:
    """A teacher made of two frozen towers (the `Teacher` protocol).

    Args:
        info: the teacher's facts.
        prepare: image -> [3, H, W]; picklable, without weights.
        towers: modules already on `device`; what the tokenizer returns has `.to(device)`.
        count_cut: how many of the given texts are longer than the text tower's context.
        device: where the towers are.
    """

    def __init__(
        self,
        *,
        info: TeacherInfo,
        prepare: Callable[[Image.Image], Tensor],
        towers: Towers,
        count_cut: Callable[[Sequence[str]], int],
        device: torch.device,
    ) -> None:
        self.info = info
        self.towers: Towers | None = towers
        self.device = device
        self._prepare = prepare
        self._towers = towers
        self._count_cut = count_cut
        self._cut_was_said = False

    @property
    def prepare(self) -> Callable[[Image.Image], Tensor]:
        """The teacher's own preprocessing, picklable for loader workers."""
        return self._prepare

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode prepared images [N, 3, H, W] to float32 [N, D], unnormalised, on the device."""
        features: Tensor = self._towers.image(pixels.to(self.device))
        return features.float()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode texts to float32 [N, D], unnormalised, on the device.

        A text longer than the context is cut by the tokenizer; the first time, a warning says so.
        """
        parts = [torch.empty(0, self.info.dim, device=self.device)]
        for start in range(0, len(texts), TEXT_BATCH):
            chunk = list(texts[start : start + TEXT_BATCH])
            self._say_cut(chunk)
            tokens = self._towers.tokenizer(chunk).to(self.device)
            parts.append(self._towers.text(tokens).float())
        return torch.cat(parts)

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts of which the teacher reads only the beginning."""
        return self._count_cut(texts)

    def _say_cut(self, texts: Sequence[str]) -> None:
        if self._cut_was_said:
            return
        cut = self._count_cut(texts)
        if cut:
            self._cut_was_said = True
            log.warning(
                "teacher %s reads only the beginning of long texts: %d of %d texts were cut, "
                "such as %r (said once)",
                self.info.name,
                cut,
                len(texts),
                max(texts, key=len)[:60],
            )


def check_towers(towers: Towers, pixels: Tensor, tokens: Any, name: str) -> int:
    """Run both towers once and return D; a model that cannot run is refused now, not in the job.

    `pixels` is [1, 3, H, W] and `tokens` what the tokenizer made of one text.
    """
    try:
        with torch.no_grad():
            image, text = towers.image(pixels), towers.text(tokens)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(
            f"teacher {name!r} was loaded but cannot run ({one_line(error)}); "
            "its configuration does not fit its weights or its image size"
        ) from error
    if image.ndim != 2 or image.shape != text.shape:
        raise UsageError(
            f"teacher {name!r} has no joint space: an image gives {list(image.shape)} numbers and "
            f"a text {list(text.shape)}; both must give [1, D]"
        )
    if not (image.isfinite().all() and text.isfinite().all()):
        raise UsageError(f"teacher {name!r} gives NaN or infinite features; its weights are broken")
    return int(image.shape[1])


def freeze(towers: Towers, device: torch.device) -> None:
    """Put both towers on `device` in evaluation mode, their parameters without gradient."""
    for tower in (towers.image, towers.text):
        tower.to(device).eval().requires_grad_(False)
