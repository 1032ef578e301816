"""Find out how a client may shrink an image so that the teacher sees what it would have seen."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attar.teachers.remote_images import INTERPOLATIONS, SendPrepare

NEAR = 0.06
"""Largest difference of a prepared pixel (in standard deviations): rounding to 8 bits twice."""
WIDEST = 1.3
"""A teacher may resize to more than it looks at, then cut the middle out; rarely to more."""


def find_prepare(prepare: Callable[[Image.Image], Tensor]) -> SendPrepare | None:
    """Return the preparation after which the teacher's own one changes nothing, None for none.

    Every size, fit and interpolation is tried on two pictures of noise; the nearest is returned.
    """
    random = np.random.default_rng(0)
    side = prepare(Image.new("RGB", (64, 64))).shape[-1]
    shapes = ((2 * side, 5 * side // 2 + 3), (5 * side // 2 + 1, 2 * side))
    pictures = [
        Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes
    ]
    wanted = [prepare(picture) for picture in pictures]
    best, nearest = None, NEAR
    for candidate in _candidates(side):
        error = 0.0
        for picture, want in zip(pictures, wanted, strict=True):
            got = prepare(_picture(candidate(picture)))
            different = got.shape != want.shape
            error = max(error, float("inf") if different else float((got - want).abs().max()))
            if error > nearest:
                break
        if error < nearest or (best is None and error <= nearest):
            best, nearest = candidate, error
        if error == 0:
            break
    return best


def _candidates(side: int) -> list[SendPrepare]:
    plain = [
        SendPrepare(size=side, fit=fit, interpolation=name)
        for name in INTERPOLATIONS
        for fit in ("crop", "squash")
    ]
    wider = [
        SendPrepare(size=size, fit="crop", interpolation=name)
        for size in range(side + 1, int(side * WIDEST) + 1)
        for name in INTERPOLATIONS
    ]
    return plain + wider


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).to(torch.uint8).contiguous().numpy())
