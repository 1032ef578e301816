"""What a teacher's pixels were normalised with, and a teacher that is shown them otherwise.

The official code of VL2V normalises images for CLIP with ImageNet's constants instead of CLIP's.
`with_imagenet_normalisation` is that teacher: other features, so another identity.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Normalize

from attar.errors import UsageError
from attar.files import sha256_text
from attar.teachers.base import Teacher, TeacherInfo, Towers

Channels = tuple[float, float, float]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


def normalisation_of(teacher: Teacher) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of the teacher's own preprocessing.

    Raises:
        UsageError: it does not say them.
    """
    prepare: Any = teacher.prepare
    if isinstance(prepare, Renormalise):
        return IMAGENET_MEAN, IMAGENET_STD
    found = [step for step in getattr(prepare, "transforms", ()) if isinstance(step, Normalize)]
    if len(found) != 1:
        raise UsageError(
            f"teacher {teacher.info.name!r} does not say how it normalises pixels; this works with "
            "the pocket teacher and OpenCLIP's"
        )
    mean, std = ([float(value) for value in values] for values in (found[0].mean, found[0].std))
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


class Renormalise:
    """A teacher's preprocessing with ImageNet's constants in the place of its own; picklable."""

    def __init__(
        self, prepare: Callable[[Image.Image], Tensor], mean: Channels, std: Channels
    ) -> None:
        self._prepare = prepare
        self._mean, self._std = mean, std

    def __call__(self, image: Image.Image) -> Tensor:
        """Return [3, H, W]: ((p σ + μ) - μ_ImageNet) / σ_ImageNet of the teacher's own pixels p."""
        pixels = self._prepare(image) * _column(self._std) + _column(self._mean)
        return (pixels - _column(IMAGENET_MEAN)) / _column(IMAGENET_STD)


def _column(values: Channels) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


class Renormalised:
    """A teacher (the `Teacher` protocol) that sees images normalised with ImageNet's constants."""

    def __init__(self, teacher: Teacher) -> None:
        mean, std = normalisation_of(teacher)
        self._teacher = teacher
        self._prepare = Renormalise(teacher.prepare, mean, std)
        self.towers: Towers | None = teacher.towers
        self.info: TeacherInfo = replace(
            teacher.info,
            identity=sha256_text(f"{teacher.info.identity} with ImageNet's normalisation"),
        )

    @property
    def prepare(self) -> Callable[[Image.Image], Tensor]:
        """The changed preprocessing."""
        return self._prepare

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode prepared images [N, 3, H, W] to float32 [N, D], as the teacher does."""
        return self._teacher.encode_images(pixels)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Encode strings to float32 [N, D], as the teacher does."""
        return self._teacher.encode_texts(texts)


def with_imagenet_normalisation(teacher: Teacher) -> Teacher:
    """Return the teacher as the official code of VL2V shows it images.

    Raises:
        UsageError: the teacher does not say how it normalises pixels.
    """
    return Renormalised(teacher)


def as_known(teacher: Teacher, identity: str) -> Teacher:
    """Return the teacher in the way, its own or ImageNet's normalisation, that has this identity.

    The teacher itself where neither has: whoever compares identities then says so.
    """
    if teacher.info.identity == identity:
        return teacher
    try:
        other = with_imagenet_normalisation(teacher)
    except UsageError:  # it does not say how it normalises pixels
        return teacher
    return other if other.info.identity == identity else teacher
