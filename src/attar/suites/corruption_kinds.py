"""attar-C: 15 kinds of corruption at 5 severities, in the manner of ImageNet-C.

The kinds are those of Hendrycks & Dietterich (ICLR 2019, arXiv 1903.12261); the code, the constants
and the textures are our own, so errors measured with it do not compare with a published mCE.

A picture x is float64 [H, W, 3] in 0..1. Lengths are in pixels of a 224 x 224 picture.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal

from attar.errors import UsageError, unknown_name
from attar.files import sha256_text

Pixels = NDArray[np.float64]
Kind = Callable[[Pixels, int, Generator], Pixels]
"""(picture [H, W, 3], severity 0..4, chance) -> picture, clipped to 0..1 afterwards."""

CANVAS = 224
"""Side in pixels at which every picture is corrupted, whatever its file or a model's input is."""


def corrupt(
    image: Image.Image, kind: str, severity: int, *, key: str, seed: int = 0
) -> Image.Image:
    """Return a picture of 224 x 224 pixels, corrupted; severity 0 only crops and resizes it.

    The shorter side becomes 224 and the centre is kept; corruption comes after that, so that a
    severity means the same whatever the file's size. The result is a pure function of the picture
    and of (key, kind, severity, seed).

    Args:
        image: RGB of any size.
        kind: a name of `CORRUPTIONS`.
        severity: 1 (mild) to 5 (severe), or 0.
        key: what tells this picture from others, such as the sha256 of its file.
        seed: another seed gives other noise.

    Raises:
        UsageError: unknown kind, or no such severity.
    """
    if severity not in range(6):
        raise UsageError(f"corruption severity {severity}: give 1 to 5")
    square = on_canvas(image)
    if severity == 0:
        return square
    corruption = find_corruption(kind)
    chance = np.random.default_rng(int(sha256_text(f"{seed}/{key}/{kind}/{severity}")[:16], 16))
    corrupted = corruption(np.asarray(square, dtype=np.float64) / 255, severity - 1, chance)
    return _to_image(corrupted)


def find_corruption(kind: str) -> Kind:
    """Return a corruption by name; an unknown one is a UsageError with the nearest names."""
    if kind not in CORRUPTIONS:
        raise unknown_name("kind of corruption", kind, CORRUPTIONS)
    return CORRUPTIONS[kind]


def on_canvas(image: Image.Image) -> Image.Image:
    """Return the centre of a picture at 224 x 224 pixels."""
    scale = CANVAS / min(image.size)
    width, height = (max(CANVAS, round(side * scale)) for side in image.size)
    left, top = (width - CANVAS) // 2, (height - CANVAS) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + CANVAS, top + CANVAS))


def _to_image(x: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8))


def gaussian_noise(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """x + σ n, n normal: a sensor in low light."""
    sigma = (0.07, 0.12, 0.18, 0.26, 0.38)[severity]
    return x + sigma * chance.standard_normal(x.shape)


def shot_noise(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """Poisson(λ x) / λ: light comes in λ quanta where it is white."""
    quanta = (60, 25, 12, 6, 3)[severity]
    return np.asarray(chance.poisson(np.clip(x, 0, 1) * quanta) / quanta)


def impulse_noise(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """A share of the values becomes 0 or 1: bit errors."""
    share = (0.03, 0.06, 0.1, 0.17, 0.27)[severity]
    drawn = chance.random(x.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, x))


def defocus_blur(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """A disk in place of each point: an object out of focus."""
    radius = (3.0, 4.0, 6.0, 8.0, 10.0)[severity]
    return _convolve(x, _disk(radius))


def glass_blur(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """Pixels change places with near ones, between two blurs: frosted glass."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[
        severity
    ]
    y = _blurred(x, sigma)
    rows, columns = np.indices(x.shape[:2])
    for _ in range(rounds):
        moved = [
            np.clip(place + chance.integers(-reach, reach + 1, place.shape), 0, side - 1)
            for place, side in ((rows, x.shape[0]), (columns, x.shape[1]))
        ]
        y = y[moved[0], moved[1]]
    return _blurred(y, sigma)


def motion_blur(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """A line of random direction in place of each point: the camera moved."""
    length = (9, 13, 18, 24, 32)[severity]
    return _convolve(x, _line(length, chance.uniform(0, np.pi)))


def zoom_blur(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """The mean of pictures of growing zoom: the camera moved towards the object."""
    largest = (1.1, 1.15, 1.2, 1.27, 1.35)[severity]
    image, side = _to_image(x), x.shape[0]
    zooms = np.linspace(1, largest, 12)
    total = np.zeros_like(x)
    for zoom in zooms:
        margin = side * (1 - 1 / zoom) / 2
        box = (margin, margin, side - margin, side - margin)
        near = image.resize(image.size, Image.Resampling.BILINEAR, box=box)
        total += np.asarray(near, dtype=np.float64) / 255
    return total / len(zooms)


def snow(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """Bright streaks over a picture that has become pale."""
    share, length, pallor = (
        (0.02, 8, 0.1), (0.035, 10, 0.2), (0.05, 12, 0.25), (0.07, 14, 0.32), (0.1, 16, 0.4)
    )[severity]  # fmt: skip
    flakes = ndimage.zoom(chance.random((x.shape[0] // 2, x.shape[1] // 2)), 2, order=1)
    falling = (flakes > np.quantile(flakes, 1 - share)).astype(np.float64)
    angle = chance.uniform(-0.25, 0.25) + np.pi / 2
    streaks = np.clip(2 * _convolve(falling[..., None], _line(length, angle)), 0, 1)
    grey = np.maximum(x, x.mean(axis=2, keepdims=True) * 0.5 + 0.5)
    return (1 - pallor) * x + pallor * grey + streaks


def frost(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """Crystals of ice, ridges of a fractal, in front of a picture that has become dark."""
    clear, cover = ((0.9, 0.35), (0.8, 0.5), (0.72, 0.6), (0.66, 0.67), (0.6, 0.75))[severity]
    field = _fractal(x.shape[0], x.shape[1], chance, roughness=0.7)
    ridges = (1 - np.abs(2 * field - 1)) ** 3
    ice = ridges[..., None] * np.array([0.85, 0.93, 1.0])
    return clear * x + cover * ice


def fog(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """A pale fractal in front of a picture that has lost contrast."""
    density = (0.6, 0.9, 1.2, 1.6, 2.2)[severity]
    veil = _fractal(x.shape[0], x.shape[1], chance, roughness=0.5)[..., None]
    brightest = x.max()
    return np.asarray((x + density * veil) * brightest / (brightest + density))


def brightness(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """The value of HSV is raised: the picture is over-exposed."""
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[severity]
    value = x.max(axis=2, keepdims=True)
    lighter = np.minimum(value + more, 1)
    return np.where(value > 0, x * lighter / np.maximum(value, 1e-6), lighter)


def contrast(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """Every value moves towards the mean of its channel."""
    kept = (0.4, 0.3, 0.2, 0.12, 0.06)[severity]
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray(mean + kept * (x - mean))


def elastic_transform(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """Small regions are stretched and squeezed."""
    strength = (1.5, 2.2, 3.0, 4.0, 5.2)[severity]
    smoothness = 8.0
    places = []
    for place in np.indices(x.shape[:2]):
        shift = ndimage.gaussian_filter(chance.uniform(-1, 1, place.shape), smoothness)
        places.append(place + strength * shift / shift.std())
    channels = [
        ndimage.map_coordinates(c, places, order=1, mode="reflect") for c in np.moveaxis(x, 2, 0)
    ]
    return np.stack(channels, axis=2)


def pixelate(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """The picture is scaled down and up again."""
    share = (0.5, 0.4, 0.3, 0.24, 0.18)[severity]
    image = _to_image(x)
    small = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    coarse = image.resize(small, Image.Resampling.BOX)
    return np.asarray(coarse.resize(image.size, Image.Resampling.NEAREST), dtype=np.float64) / 255


def jpeg_compression(x: Pixels, severity: int, chance: Generator) -> Pixels:
    """JPEG of low quality."""
    quality = (25, 18, 13, 9, 6)[severity]
    file = io.BytesIO()
    _to_image(x).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


CORRUPTIONS: dict[str, Kind] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
"""The 15 kinds: noise, blur, weather and digital ones."""


def _blurred(x: Pixels, sigma: float) -> Pixels:
    blurred: Any = ndimage.gaussian_filter(x, (sigma, sigma, 0))
    return np.asarray(blurred)


def _convolve(x: Pixels, kernel: Pixels) -> Pixels:
    """Convolve [H, W, K] with a kernel [k, k] of odd side; the border is mirrored."""
    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    blurred: Any = signal.fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))
    return np.asarray(blurred)


def _disk(radius: float) -> Pixels:
    """Return a disk of sum 1, its rim softened over a pixel."""
    reach = int(np.ceil(radius)) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1)
    return np.asarray(disk / disk.sum())


def _line(length: int, angle: float) -> Pixels:
    """Return a line of sum 1 through the middle, a pixel wide."""
    reach = length // 2 + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = columns * np.sin(angle) - rows * np.cos(angle)
    line = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    return np.asarray(line / line.sum())


def _fractal(height: int, width: int, chance: Generator, *, roughness: float) -> Pixels:
    """Return a field [H, W] in 0..1: grids of 3, 5, 9, ... random points, each finer one weaker."""
    field = np.zeros((height, width))
    for octave in range(1, 8):
        grid = Image.fromarray(chance.random((2**octave + 1, 2**octave + 1)).astype(np.float32))
        smooth = grid.resize((width, height), Image.Resampling.BICUBIC)
        field += roughness**octave * np.asarray(smooth, dtype=np.float64)
    return np.asarray((field - field.min()) / np.ptp(field))
