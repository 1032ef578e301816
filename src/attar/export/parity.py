"""Proof on real images that the bundle computes what the student computes in torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from attar.data.images import read_image
from attar.data.transforms import eval_transform
from attar.errors import AttarError, UsageError
from attar.export.config import ExportConfig
from attar.export.onnx import deployed
from attar.runtime.bundle import INPUT
from attar.runtime.predict import open_session
from attar.runtime.preprocess import Preprocess, load_inputs
from attar.students.student import Student

_PIXEL_STEP = 1 / 255
_CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the exported model is from the student, over real images."""

    images: int
    max_abs_difference: float
    """Largest difference of any output value between torch and onnxruntime."""
    min_cosine: float
    """Smallest cosine between the two outputs of one image."""
    top1_agreement: float
    """Share of images with the same best class, ties within the tolerance aside."""
    max_pixel_difference: float
    """Largest difference between the runtime's and torch's preprocessing, in 0..1."""


@dataclass(frozen=True)
class Samples:
    """Real images as the runtime prepares them."""

    paths: tuple[Path, ...]
    pixels: NDArray[np.float32]
    """[N, 3, H, W] in [0, 1]."""


def read_samples(images: Sequence[Path], preprocess: Preprocess, count: int) -> Samples:
    """Read the first `count` images with the bundle's preprocessing.

    Raises:
        UsageError: there is none.
        AttarError: one cannot be read; it is named.
    """
    chosen = tuple(Path(image) for image in images[:count])
    if not chosen:
        raise UsageError("export needs at least one readable image to prove parity on; give --data")
    pixels, failures = load_inputs(chosen, preprocess)
    if failures or pixels is None:
        position, reason = next(iter(failures.items()))
        raise AttarError(f"{chosen[position]} cannot be read to prove parity: {reason}")
    return Samples(chosen, pixels)


def check_parity(
    student: Student,
    model: Path,
    samples: Samples,
    class_features: NDArray[np.float32] | None,
    config: ExportConfig,
) -> Parity:
    """Compare torch and the written model on real images.

    Args:
        student: the student in torch.
        model: the ONNX file.
        samples: images prepared by the runtime; torch's preprocessing is compared with it.
        class_features: unit [C, D], or None when the output is logits [B, C] already.
        config: the bounds.

    Raises:
        AttarError: a bound is broken; the number is given.
    """
    expected, computed = _run_torch(student, samples.pixels), _run_onnx(model, samples.pixels)
    if expected.shape != computed.shape:
        raise AttarError(f"{model.name} gives {computed.shape}, the student {expected.shape}")
    parity = Parity(
        images=len(samples.paths),
        max_abs_difference=float(np.abs(expected - computed).max()),
        min_cosine=float(_cosine(expected, computed).min()),
        top1_agreement=_agreement(expected, computed, class_features, config.tolerance),
        max_pixel_difference=_pixel_difference(student, samples),
    )
    largest = max(1.0, float(np.abs(expected).max()))
    _judge(parity, config, config.tolerance * largest, student.spec.name)
    return parity


def _run_torch(student: Student, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    model = deployed(student)
    with torch.inference_mode():
        images = torch.from_numpy(pixels)
        chunks = [model(images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)]
    return torch.cat(chunks).numpy()


def _run_onnx(model: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run the first image alone and the others together: the batch must be dynamic."""
    session = open_session(model)
    chunks = [pixels[:1], *(pixels[i : i + _CHUNK] for i in range(1, len(pixels), _CHUNK))]
    return np.concatenate([session.run(None, {INPUT: chunk})[0] for chunk in chunks])


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.asarray((x * y).sum(axis=1) / norms)


def _agreement(
    expected: NDArray[np.float32],
    computed: NDArray[np.float32],
    class_features: NDArray[np.float32] | None,
    tolerance: float,
) -> float:
    """Return the share of images whose best class is the same.

    Where torch scores the two classes within the tolerance of each other, either is right.
    """
    if class_features is not None:
        expected, computed = expected @ class_features.T, computed @ class_features.T
    rows = np.arange(len(expected))
    lead = expected.max(axis=1) - expected[rows, computed.argmax(axis=1)]
    return float((lead <= tolerance).mean())


def _pixel_difference(student: Student, samples: Samples) -> float:
    """Return the largest difference between the two preprocessings of the same files."""
    spec = student.spec
    transform = eval_transform(spec.image_size, spec.crop_pct, spec.interpolation)
    differences = [
        np.abs(transform(read_image(path)).numpy().astype(np.float32) / 255 - own).max()
        for path, own in zip(samples.paths, samples.pixels, strict=True)
    ]
    return float(max(differences))


def _judge(parity: Parity, config: ExportConfig, tolerance: float, name: str) -> None:
    """Raise unless every bound holds; a NaN breaks each of them."""
    bounds = (
        (
            parity.max_pixel_difference <= _PIXEL_STEP * 1.01,
            "preprocessing differs by"
            f" {parity.max_pixel_difference * 255:.2f} of 255 levels (allowed 1)",
        ),
        (
            parity.max_abs_difference <= tolerance,
            f"an output differs by {parity.max_abs_difference:.2e} (allowed {tolerance:.0e})",
        ),
        (
            parity.min_cosine >= config.min_cosine,
            f"the cosine falls to {parity.min_cosine:.6f} (allowed {config.min_cosine})",
        ),
        (
            parity.top1_agreement == 1.0,
            f"the best class is the same on only {parity.top1_agreement:.1%} of images",
        ),
    )
    broken = [text for holds, text in bounds if not holds]
    if broken:
        raise AttarError(
            f"the exported model of {name} is not the student, no bundle was written: on "
            f"{parity.images} images {'; '.join(broken)}"
        )
