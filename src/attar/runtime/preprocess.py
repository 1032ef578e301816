"""From a picture to the model's input with pillow and numpy: the same pixels as in evaluation."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attar.data.images import is_image_name, read_image
from attar.errors import AttarError, UsageError, unknown_name

ResizeMode = Literal["shortest", "squash"]

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Resize the shorter side to int(image_size / crop_pct), cut the centre, scale to [0, 1].

    With `resize_mode="squash"` the whole picture becomes the square. The mean and the standard
    deviation are not here: they are inside model.onnx.
    """

    image_size: int
    crop_pct: float
    interpolation: str
    resize_mode: ResizeMode = "shortest"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise unknown_name("interpolation", self.interpolation, INTERPOLATIONS)
        if self.resize_mode not in get_args(ResizeMode):
            raise unknown_name("resize mode", self.resize_mode, get_args(ResizeMode))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Make it from preprocess.json; keys that it does not know are for the reader."""
        return cls(
            image_size=int(values["image_size"]),
            crop_pct=float(values["crop_pct"]),
            interpolation=str(values["interpolation"]),
            resize_mode=values["resize_mode"],
        )

    def crop(self, image: Image.Image) -> Image.Image:
        """Return the square [image_size, image_size] of an RGB picture."""
        size, resample = self.image_size, INTERPOLATIONS[self.interpolation]
        if self.resize_mode == "squash":
            return image.resize((size, size), resample)
        short = int(size / self.crop_pct)  # cut off, as timm does
        width, height = image.size
        if width <= height:
            resized = image.resize((short, int(short * height / width)), resample)
        else:
            resized = image.resize((int(short * width / height), short), resample)
        left = round((resized.width - size) / 2)
        top = round((resized.height - size) / 2)
        return resized.crop((left, top, left + size, top + size))

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the model's input [3, H, W], float32 in [0, 1]."""
        pixels = np.asarray(self.crop(image), dtype=np.float32) / np.float32(255)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def find_images(inputs: Iterable[Path]) -> list[Path]:
    """Return the images named or held (at any depth) by `inputs`, files as given, folders sorted.

    Raises:
        UsageError: a path is missing, or a folder holds no image.
    """
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files = (p for p in sorted(path.rglob("*")) if p.is_file())
            inside = [
                p for p in files if is_image_name(p.name) and not _is_hidden(p.relative_to(path))
            ]
            if not inside:
                raise UsageError(f"{path} holds no images; give an image or a folder of images")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{path} does not exist; give an image or a folder of images")
    if not found:
        raise UsageError("no images were given; give an image or a folder of images")
    return found


def _is_hidden(path: Path) -> bool:
    """Whether a file is what some systems add to a folder, such as ._0001.jpg."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def load_inputs(
    paths: Iterable[Path], prepare: Callable[[Image.Image], NDArray[np.float32]]
) -> tuple[NDArray[np.float32] | None, dict[int, str]]:
    """Read and prepare images: ([N, 3, H, W] of the readable ones, {position: reason} of others).

    A picture that cannot be read never stops the others; the array is None when none could.
    """
    pixels, failures = [], {}
    for position, path in enumerate(paths):
        try:
            pixels.append(prepare(read_image(path)))
        except AttarError as why:
            failures[position] = str(why).removeprefix(f"{path} cannot be read: ")
    return (np.stack(pixels) if pixels else None), failures
