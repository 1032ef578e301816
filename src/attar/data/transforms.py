"""From a PIL image to a student's uint8 tensor: random while training, fixed in evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor

from attar.data.random_convolution import RandomConvolution
from attar.data.views import AUGMENTATIONS, RESAMPLING, Recipe, RecordedView, find_recipe
from attar.errors import UsageError, unknown_name

__all__ = [
    "AUGMENTATIONS",
    "EvalTransform",
    "RecordedView",
    "Transform",
    "eval_transform",
    "train_transform",
]

Transform = Callable[[Image.Image], Tensor]
"""RGB image of any size -> uint8 [3, size, size]."""


_SQUASHED = 256 / 224
"""Li et al. squash every image to this many times the student's size before they crop."""

SQUASHING: dict[str, tuple[Any, ...]] = {
    "li2023": (),
    "li2023-randaugment": (transforms.RandAugment(num_ops=2, magnitude=9),),
}
"""Augmentations of Li et al. (ICCV 2023) that no recorded view can tell again -> what comes between
the squashing and the crop; the second is for their ViT students."""

RETEXTURING: dict[str, tuple[str, RandomConvolution]] = {
    "domainbed-randconv": ("domainbed", RandomConvolution()),
}
"""Augmentations that change texture too, which no recorded view can tell again -> the recipe that
comes first, and what the image goes through then."""


def train_transform(name: str, size: int) -> Transform:
    """Return the augmentation of that name: RGB image -> uint8 [3, size, size].

    It draws from torch's global generator, so seeding that makes it repeatable. The operations
    are torchvision's own on PIL images, the crop first. "none" is the evaluation resize of the
    whole image (shorter side, then centre crop).

    Raises:
        UsageError: unknown name or a size below 1.
    """
    _check_size(size)
    if name in SQUASHING:
        squashed = round(size * _SQUASHED)
        return transforms.Compose(
            [
                transforms.Resize((squashed, squashed)),
                *SQUASHING[name],
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(0.5 if name == "li2023" else 0.0),
                pil_to_tensor,
            ]
        )
    if name in RETEXTURING:
        base, retexture = RETEXTURING[name]
        return transforms.Compose([train_transform(base, size), retexture])
    recipe = find_recipe(name)
    if name == "none":
        return eval_transform(size, crop_pct=1.0, interpolation=recipe.interpolation)
    return transforms.Compose([*_operations(recipe, size), pil_to_tensor])


def _operations(recipe: Recipe, size: int) -> list[Any]:
    operations: list[Any] = [
        transforms.RandomResizedCrop(
            size,
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            interpolation=InterpolationMode(recipe.interpolation),
        ),
        transforms.RandomHorizontalFlip(recipe.flip),
    ]
    jitter = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    if any(jitter):
        operations.append(transforms.ColorJitter(*jitter))
    if recipe.grayscale:
        operations.append(transforms.RandomGrayscale(recipe.grayscale))
    return operations


@dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Resize and centre crop without randomness; picklable. See `eval_transform`."""

    size: int
    crop_pct: float
    interpolation: str
    squash: bool

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the image at `size` x `size` pixels."""
        resampling = RESAMPLING[self.interpolation]
        if self.squash:
            return image.resize((self.size, self.size), resampling)
        width, height = image.size
        short = int(self.size / self.crop_pct)  # cut off, as timm does
        if width <= height:
            scaled = (short, int(short * height / width))
        else:
            scaled = (int(short * width / height), short)
        left, top = (round((side - self.size) / 2) for side in scaled)
        return image.resize(scaled, resampling).crop((left, top, left + self.size, top + self.size))

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 [3, size, size] of an RGB image."""
        return pil_to_tensor(self.resize(image))


def eval_transform(
    size: int, crop_pct: float, interpolation: str, squash: bool = False
) -> EvalTransform:
    """Return the fixed transform of evaluation: RGB image -> uint8 [3, size, size].

    The shorter side becomes int(size / crop_pct), as in timm, and the centre is cropped.
    With `squash` the whole image is resized to size x size whatever its shape, as DomainBed does.

    Raises:
        UsageError: unknown interpolation, a size below 1, or crop_pct outside (0, 1].
    """
    _check_size(size)
    if interpolation not in RESAMPLING:
        raise unknown_name("interpolation", interpolation, RESAMPLING)
    if not 0 < crop_pct <= 1:
        raise UsageError(f"crop_pct {crop_pct} is not a share of the image: give 0 < crop_pct <= 1")
    return EvalTransform(size=size, crop_pct=crop_pct, interpolation=interpolation, squash=squash)


def _check_size(size: int) -> None:
    if size < 1:
        raise UsageError(f"image size {size} is too small: give at least 1 pixel")
