"""What a teacher is: the protocol every vision-language teacher in attar follows.

A teacher turns images and texts into one space of `dim` numbers and says how sharp its
softmax is (`logit_scale`).  Its two towers are given only where white-box methods may reach
into them; everything else goes through the three functions of the protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from attar.errors import AttarError


@dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """The facts about a teacher that travel with everything computed from it."""

    name: str
    """The spec it was loaded by, such as `ViT-B-32/openai` or `pocket`."""
    identity: str
    """SHA-256 (hex) over the weights and the preprocessing: equal means the same features."""
    dim: int
    """D, the width of the joint image-text space."""
    logit_scale: float
    """The factor on cosine similarities before a softmax (already exponentiated, e.g. 100.0)."""
    licence: str | None = None
    """One line shown to the user when the weights are for research only, else None."""


@dataclass(frozen=True, kw_only=True)
class Towers:
    """A teacher's networks, for methods that look inside (learnt prompts, relation losses)."""

    image: nn.Module
    """Pixels `[N, 3, H, W]` as the teacher's `prepare` makes them to features `[N, D]`."""
    text: nn.Module
    """What `tokenizer` returns (on the module's device) to features `[N, D]`."""
    tokenizer: Callable[..., Any]
    """A list of strings to the input of `text`."""


@runtime_checkable
class Teacher(Protocol):
    """A frozen vision-language model."""

    info: TeacherInfo
    towers: Towers | None

    @property
    def prepare(self) -> Callable[[Image.Image], Tensor]:
        """The preprocessing: an RGB image to a float tensor `[3, H, W]`.

        It is picklable and holds no weights, so that loader workers can run it.
        """
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode prepared images `[N, 3, H, W]` to float32 `[N, D]`.

        The features are not normalised and carry no gradient.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode strings to float32 `[N, D]`, not normalised, without gradient.

        Long lists are batched inside; the result does not depend on the order of the texts.
        """
        ...


class Unanswered(Exception):
    """Some questions of a batch got no answer; those that did are kept.

    Only teachers that are asked over a network raise it.
    """

    def __init__(
        self, features: Tensor, reasons: Mapping[int, str], cause: AttarError | None = None
    ) -> None:
        super().__init__(next(iter(reasons.values()), str(cause)))
        self.features = features
        """[N, D] float32, NaN in the rows without an answer."""
        self.reasons = dict(reasons)
        """Row -> why this very question has no answer."""
        self.cause = cause
        """What stops the run, when the trouble is not with single questions."""
