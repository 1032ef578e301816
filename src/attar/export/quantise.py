"""The bundle's model in 8-bit integers, kept only if it answers as the one in float32 does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.data.images import read_image
from attar.errors import AttarError, UsageError
from attar.export.config import ExportConfig
from attar.export.onnx import quiet
from attar.runtime.bundle import INPUT, MODEL_INT8
from attar.runtime.predict import open_session
from attar.runtime.preprocess import Preprocess

_JUDGED = 1000
"""Validation images that the gate looks at, at most."""
_CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class SourceImages:
    """Images of the source alone: a model is neither made from nor chosen by what tests it."""

    training: Sequence[Path]
    """The ranges of the network's values are found on the first of these."""
    validation: Sequence[Path]
    labels: Sequence[int]
    """Of each validation image: index into the bundle's classes, -1 for none of them."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """What became of the int8 model, and how it compares with fp32 on validation images."""

    written: bool
    reason: str
    """Why there is none, else empty."""
    training_images: int
    validation_images: int
    top1_agreement: float
    """Share of images for which both have the same best class."""
    mean_cosine: float
    """Between the two outputs of one image, as `min_cosine`."""
    min_cosine: float
    unrelated_cosine: float | None
    """Mean cosine between fp32's outputs of different images: what a cosine above is worth."""
    labelled_images: int
    accuracy_int8: float | None
    """Top-1 over the images whose class is one of the bundle's; None without any."""
    accuracy_fp32: float | None
    bytes_int8: int
    bytes_fp32: int


class _Calibration:
    """onnxruntime's CalibrationDataReader: one image after the other, none kept."""

    def __init__(self, images: Sequence[Path], preprocess: Preprocess) -> None:
        self._images, self._preprocess = iter(images), preprocess

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the input [1, 3, H, W] of the next image, or None after the last."""
        image = next(self._images, None)
        return None if image is None else {INPUT: _pixels([image], self._preprocess)}


def check_images(images: SourceImages | None) -> SourceImages:
    """Return the images; refuse to go on without any to calibrate on or to judge by."""
    if images is None or not images.training or not images.validation:
        lacks = "training" if images is None or not images.training else "validation"
        raise UsageError(
            f"int8 needs source training and validation images, and there are no {lacks} images: "
            "export a run that kept some (--splits.val-fraction above 0), or leave int8 out"
        )
    return images


def write_int8(
    model: Path,
    images: SourceImages,
    classes: NDArray[np.float32] | None,
    preprocess: Preprocess,
    config: ExportConfig,
) -> Int8:
    """Write the int8 model beside the fp32 one, judge it, and remove it if it fails.

    Args:
        model: the fp32 ONNX file.
        images: source images; `config.int8_images` of the training ones are used.
        classes: unit class features [C, D], or None when the output is logits [B, C] already.
        preprocess: how the bundle prepares an image.
        config: the number of images and the gate's bounds.

    Returns:
        The figures, whether the gate was passed or not.

    Raises:
        AttarError: an image cannot be read, or onnxruntime cannot quantise this architecture.
    """
    target = model.with_name(MODEL_INT8)
    training = images.training[: config.int8_images]
    try:
        with quiet():
            _quantise(model, target, _Calibration(training, preprocess))
    except AttarError:
        raise
    except Exception as error:  # onnxruntime and onnx raise what they like
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AttarError(
            f"onnxruntime cannot quantise {model.name}: {reason}; leave int8 out"
        ) from error
    fp32, int8 = _outputs([model, target], images.validation[:_JUDGED], preprocess)
    figures = {
        "training_images": len(training),
        **_compare(fp32, int8, classes, np.asarray(images.labels[:_JUDGED])),
        "bytes_int8": target.stat().st_size,
        "bytes_fp32": model.stat().st_size,
    }
    reason = _why_not(figures, config)
    if reason:
        target.unlink()
    return Int8(written=not reason, reason=reason, **figures)


def _quantise(model: Path, target: Path, calibration: _Calibration) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / model.name
        # Symbolic shapes need sympy and add nothing where only the batch is unknown.
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
        attention = _between_activations(prepared)
        quantize_static(
            prepared,
            target,
            calibration,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # as near as signed ones, and faster
            weight_type=QuantType.QInt8,
            nodes_to_exclude=attention,
            # Excluded alone, they would still be given what their neighbours quantise.
            op_types_to_quantize=["Conv", "MatMul", "Gemm"] if attention else None,
        )


def _between_activations(model: Path) -> list[str]:
    """Return the MatMuls without weights, attention's: in integers they wreck the embedding."""
    import onnx

    graph = onnx.load(model).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [n.name for n in graph.node if n.op_type == "MatMul" and weights.isdisjoint(n.input)]


def _outputs(
    models: Sequence[Path], images: Sequence[Path], preprocess: Preprocess
) -> list[NDArray[np.float32]]:
    """Return the output [N, D] of each model for the same images, each read once."""
    sessions = [open_session(model) for model in models]

    def chunks() -> Iterator[list[NDArray[np.float32]]]:
        for start in range(0, len(images), _CHUNK):
            pixels = _pixels(images[start : start + _CHUNK], preprocess)
            yield [session.run(None, {INPUT: pixels})[0] for session in sessions]

    return [np.concatenate(outputs) for outputs in zip(*chunks(), strict=True)]


def _pixels(images: Sequence[Path], preprocess: Preprocess) -> NDArray[np.float32]:
    return np.stack([preprocess(read_image(image)) for image in images])


def _compare(
    fp32: NDArray[np.float32],
    int8: NDArray[np.float32],
    classes: NDArray[np.float32] | None,
    labels: NDArray[np.int64],
) -> dict[str, Any]:
    """Return the figures about two outputs [N, D] of the same images, by their names in `Int8`."""
    best32, best8 = ((o if classes is None else o @ classes.T).argmax(axis=1) for o in (fp32, int8))
    same = (best32 == best8) & np.isfinite(int8).all(axis=1)
    cosines, known = _cosines(fp32, int8), labels >= 0
    unrelated = _cosines(fp32, np.roll(fp32, 1, axis=0))
    return {
        "validation_images": len(fp32),
        "top1_agreement": float(same.mean()),
        "mean_cosine": float(cosines.mean()),
        "min_cosine": float(cosines.min()),
        "unrelated_cosine": float(unrelated.mean()) if len(fp32) > 1 else None,
        "labelled_images": int(known.sum()),
        "accuracy_int8": float((best8 == labels)[known].mean()) if known.any() else None,
        "accuracy_fp32": float((best32 == labels)[known].mean()) if known.any() else None,
    }


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows; 0 where one has no direction."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num((x * y).sum(axis=1) / norms, nan=0.0)


def _why_not(figures: dict[str, Any], config: ExportConfig) -> str:
    """Return which bounds are broken, on how many images, or nothing."""
    agreement, cosine = figures["top1_agreement"], figures["mean_cosine"]
    broken = []
    if agreement < config.int8_min_agreement:
        broken.append(
            f"fp32's best class on only {agreement:.1%} (int8-min-agreement "
            f"{config.int8_min_agreement})"
        )
    if cosine < config.int8_min_cosine:
        broken.append(
            f"a mean cosine to fp32 of only {cosine:.6f} (int8-min-cosine {config.int8_min_cosine})"
        )
    on = f"on {figures['validation_images']} validation images it has "
    return on + " and ".join(broken) if broken else ""
