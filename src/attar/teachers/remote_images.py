"""What a remote teacher is sent of an image: the part that it looks at, at the size it looks at."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FITS = ("crop", "squash")
INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
MEDIA = {"png": "image/png", "jpeg": "image/jpeg"}


@dataclass(frozen=True, kw_only=True)
class SendPrepare:
    """Resizes an image to a square before it is sent; picklable, for loader workers."""

    size: int = 336
    """Side of the square in pixels."""
    fit: str = "crop"
    """"crop": the shorter side becomes `size` and the middle is kept; "squash": both sides do."""
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 [3, size, size]: the very pixels that travel, losslessly as PNG."""
        image, side = image.convert("RGB"), self.size
        width, height = (side, side) if self.fit == "squash" else _cover(image.size, side)
        if image.size != (width, height):
            image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        # The corner is rounded as torchvision's CenterCrop does, which most teachers use.
        left, top = round((width - side) / 2), round((height - side) / 2)
        pixels = np.asarray(image.crop((left, top, left + side, top + side)))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def _cover(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the size whose shorter side is `side`, rounded as torchvision's Resize does."""
    width, height = size
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def encode_image(pixels: Tensor, kind: str = "png") -> bytes:
    """Return uint8 pixels [3, H, W] as the bytes of a PNG (lossless) or JPEG (quality 95) file."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {}
    image.save(file, format=kind, **options)
    return file.getvalue()


def probe_image() -> Image.Image:
    """Return the picture that tells one model from another; the same for ever."""
    y, x = np.mgrid[0:256, 0:320].astype(np.float64)
    waves = [
        np.sin(x / 17 + y / 41),
        np.sin(x / 53 - y / 11),
        np.cos(np.hypot(x - 200, y - 90) / 9),
    ]
    return Image.fromarray(
        np.stack([127.5 * (1 + wave) for wave in waves], axis=2).astype(np.uint8)
    )


PROBE_TEXT = "a photo of a dog, and a red house behind it"
