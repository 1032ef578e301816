"""Augmentation recipes, and recorded views: augmentations that can be told again exactly."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Self

import numpy as np
from PIL import Image, ImageEnhance

from attar.errors import AttarError, unknown_name

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One augmentation in torchvision's terms: crop and resize, flip, colour jitter, grayscale."""

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest area of the crop as a share of the image; (1, 1) takes no crop."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and greatest width over height of the crop, in pixels."""
    flip: float = 0.0
    """Probability of a horizontal flip."""
    brightness: float = 0.0
    """The factor is drawn from [1 - x, 1 + x]; the same for contrast and saturation."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """The shift is drawn from [-x, x], in turns of the colour circle."""
    grayscale: float = 0.0
    """Probability of turning grey."""
    interpolation: str = "bilinear"


AUGMENTATIONS: dict[str, Recipe] = {
    "none": Recipe(),
    # DomainBed's, used by VL2V-ADiP, MIRO and SWAD.
    "domainbed": Recipe(
        crop_scale=(0.7, 1.0),
        flip=0.5,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.3,
        grayscale=0.1,
    ),
    "flip-crop": Recipe(crop_scale=(0.08, 1.0), flip=0.5, interpolation="bicubic"),
    # timm's default for ImageNet: no hue, which is half of the cost of a colour jitter.
    "imagenet": Recipe(
        crop_scale=(0.08, 1.0),
        flip=0.5,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        interpolation="bicubic",
    ),
}
"""Augmentations by the name used in configs."""


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name; an unknown one is a UsageError with the nearest names."""
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


@dataclass(frozen=True, kw_only=True)
class RecordedView:
    """One draw of a recipe, in units that do not depend on the image's size.

    The crop is kept as the shares that `RandomResizedCrop` draws, so the same view may be applied
    to an image at any resolution.
    """

    recipe: str
    area: float
    """Area of the crop as a share of the image's area."""
    ratio: float
    """Width over height of the crop, in pixels."""
    x: float
    """Place of the crop in the free width, 0 = left, 1 = right."""
    y: float
    """Place of the crop in the free height, 0 = top, 1 = bottom."""
    flip: bool
    colour: tuple[tuple[str, float], ...]
    """("brightness" | "contrast" | "saturation" | "hue", factor) in the order of application."""
    grayscale: bool
    interpolation: str

    @classmethod
    def draw(cls, recipe: str, key: str, index: int, seed: int) -> Self:
        """Return view number `index` of the image `key`: a pure function of the four arguments."""
        settings = find_recipe(recipe)
        digest = hashlib.sha256(f"{recipe}:{key}:{index}:{seed}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest))
        area, ratio = _draw_crop(settings, generator)
        x, y = float(generator.random()), float(generator.random())
        flip = bool(generator.random() < settings.flip)
        colour = _draw_colour(settings, generator)
        return cls(
            recipe=recipe,
            area=area,
            ratio=ratio,
            x=x,
            y=y,
            flip=flip,
            colour=colour,
            grayscale=bool(generator.random() < settings.grayscale),
            interpolation=settings.interpolation,
        )

    def crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) in pixels for an image of that size.

        A crop that does not fit is cut to the image, where torchvision would draw again; this can
        happen only to images that are not square. Without a crop the whole image is taken.
        """
        if self.area >= 1:
            return 0, 0, width, height
        crop_width = min(width, max(1, round(math.sqrt(width * height * self.area * self.ratio))))
        crop_height = min(height, max(1, round(math.sqrt(width * height * self.area / self.ratio))))
        left = min(int(self.x * (width - crop_width + 1)), width - crop_width)
        top = min(int(self.y * (height - crop_height + 1)), height - crop_height)
        return left, top, left + crop_width, top + crop_height

    def apply(self, image: Image.Image, size: int) -> Image.Image:
        """Return the view of an RGB image, `size` pixels wide and high.

        The crop comes first, so that the colour operations run on the small image.
        """
        view = image.crop(self.crop_box(*image.size)).resize(
            (size, size), RESAMPLING[self.interpolation]
        )
        if self.flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation, factor in self.colour:
            view = _adjust(view, operation, factor)
        return view.convert("L").convert("RGB") if self.grayscale else view

    def to_json(self) -> str:
        """Return the view as one line of JSON; `from_json` gives back an equal view."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the view that `to_json` wrote; anything else is an AttarError."""
        try:
            value = json.loads(text)
            value["colour"] = tuple((str(name), float(f)) for name, f in value["colour"])
            return cls(**value)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise AttarError(f"not a recorded view: {text[:80]!r} ({error})") from error


def _draw_crop(recipe: Recipe, generator: np.random.Generator) -> tuple[float, float]:
    """Return (area, ratio) as RandomResizedCrop draws them for a square image: up to ten tries."""
    low, high = (math.log(r) for r in recipe.crop_ratio)
    if recipe.crop_scale == (1.0, 1.0):
        return 1.0, 1.0
    for _ in range(10):
        area = float(generator.uniform(*recipe.crop_scale))
        ratio = math.exp(generator.uniform(low, high))
        if area * ratio <= 1 and area / ratio <= 1:
            return area, ratio
    return 1.0, 1.0


def _draw_colour(recipe: Recipe, generator: np.random.Generator) -> tuple[tuple[str, float], ...]:
    names = [n for n in ("brightness", "contrast", "saturation", "hue") if getattr(recipe, n) > 0]
    colour = []
    for name in names:
        strength, middle = getattr(recipe, name), 0.0 if name == "hue" else 1.0
        least = middle - strength if name == "hue" else max(0.0, middle - strength)
        colour.append((name, float(generator.uniform(least, middle + strength))))
    return tuple(colour[i] for i in generator.permutation(len(colour)))


def _adjust(image: Image.Image, operation: str, factor: float) -> Image.Image:
    """Apply one colour operation exactly as torchvision does to a PIL image."""
    if operation == "hue":
        hue, saturation, value = image.convert("HSV").split()
        shifted = np.asarray(hue) + np.array(int(factor * 255) % 256, dtype=np.uint8)
        return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
    }
    return enhancers[operation](image).enhance(factor)
