"""Write a bundle: a folder that predicts without torch, whole and proven, or not at all."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import attar
from attar.errors import UsageError
from attar.export.card import card_text
from attar.export.config import BundleFacts, ExportConfig
from attar.export.onnx import output_name, write_onnx
from attar.export.parity import Parity, check_parity, read_samples
from attar.export.quantise import SourceImages, check_images, write_int8
from attar.files import atomic_folder, check_writable, sha256_file, write_json, write_text
from attar.runtime import bundle as layout
from attar.runtime.preprocess import Preprocess
from attar.students.student import Student, load_student

Vocabulary = tuple[Sequence[str], NDArray[Any]]
"""Texts and their features [T, D], in any scale."""


def export_bundle(
    student_folder: Path,
    out: Path,
    *,
    class_features: NDArray[Any] | None,
    class_names: Sequence[str],
    sample_images: Sequence[str],
    config: ExportConfig,
    extras: BundleFacts,
    vocabulary: Vocabulary | None = None,
    source_images: SourceImages | None = None,
) -> Path:
    """Export a student as a bundle and prove on real images that it computes the same.

    Args:
        student_folder: the student, or the run folder that holds it.
        out: the bundle folder; an older bundle there is replaced once the new one is whole.
        class_features: [C, D] text features in any scale; None for head "classes".
        class_names: C names, in the order of the features or of the logits.
        sample_images: paths of real images, for the parity check.
        config: settings; its `vocabulary` has been encoded by the caller into `vocabulary`.
        extras: the student's origin, logit scale, threshold and results.
        vocabulary: texts and their features for changing classes on the device.
        source_images: what `config.int8` is made from and judged on. An int8 model that fails its
            gate is left out of a bundle that is whole otherwise; bundle.json says why.

    Raises:
        UsageError: features, names or threshold that do not fit the student, a bad `out`, or no
            images for int8.
        AttarError: the model cannot be exported or breaks parity; then no bundle is left.
    """
    student = load_student(student_folder)
    features = _check_classes(student, class_features, class_names)
    if config.threshold is not None:
        extras = replace(extras, threshold=config.threshold)
    if not 0 <= extras.threshold <= 1:
        raise UsageError(f"the threshold {extras.threshold} is not a confidence between 0 and 1")
    if vocabulary is not None:
        _check_vocabulary(student, vocabulary)
    if config.int8:
        source_images = check_images(source_images)
    check_out(out, student, config)
    spec = student.spec
    preprocess = Preprocess(
        image_size=spec.image_size, crop_pct=spec.crop_pct, interpolation=spec.interpolation
    )
    images = [Path(image) for image in sample_images]
    samples = read_samples(images, preprocess, config.parity_images)
    with atomic_folder(out) as folder:
        model = folder / layout.MODEL
        write_onnx(student, model)
        parity = check_parity(student, model, samples, features, config)
        int8 = None
        if config.int8 and source_images is not None:
            int8 = write_int8(model, source_images, features, preprocess, config)
        _write_labels(folder, features, class_names, extras.logit_scale)
        write_json(folder / layout.PREPROCESS, _preprocess_json(student, preprocess))
        if vocabulary is not None:
            _write_vocabulary(folder, vocabulary)
        texts = 0 if vocabulary is None else len(vocabulary[0])
        card = card_text(spec, extras, (parity, int8), class_names, texts)
        write_text(folder / layout.CARD, card)
        origin = _origin(student, extras, len(class_names), parity)
        _write_manifest(folder, origin if int8 is None else {**origin, "int8": asdict(int8)})
    return out


def unit_rows(features: NDArray[Any]) -> NDArray[np.float32]:
    """Return the rows of [N, D] at unit length, in float32; a zero or infinite row is refused."""
    rows = np.asarray(features, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise UsageError("text features hold a row of zeros or a value that is not finite")
    return np.asarray(rows / norms, dtype=np.float32)


def _check_classes(
    student: Student, features: NDArray[Any] | None, names: Sequence[str]
) -> NDArray[np.float32] | None:
    """Return unit class features, or None for a plain classifier; refuse what does not fit."""
    spec = student.spec
    _check_lines("class name", names)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"{len(names)} class names are not two or more different ones")
    if spec.head == "classes":
        if features is not None or tuple(names) != spec.class_names:
            raise UsageError(
                f"{spec.name} is a plain classifier of {len(spec.class_names)} classes: export it "
                "without --classes"
            )
        return None
    if features is None:
        raise UsageError(f"{spec.name} gives embeddings: give --classes FILE to export it")
    if features.shape != (len(names), spec.dim):
        raise UsageError(
            f"class features {tuple(features.shape)} do not fit {len(names)} classes and the "
            f"student's {spec.dim} dimensions; use the teacher it was distilled from"
        )
    return unit_rows(features)


def _check_vocabulary(student: Student, vocabulary: Vocabulary) -> None:
    texts, features = vocabulary
    _check_lines("vocabulary text", texts)
    if student.spec.head == "classes":
        raise UsageError(f"{student.spec.name} is a plain classifier: it can use no vocabulary")
    if features.shape != (len(texts), student.spec.dim) or not texts:
        raise UsageError(
            f"vocabulary features {tuple(features.shape)} do not fit {len(texts)} texts and the "
            f"student's {student.spec.dim} dimensions"
        )


def _check_lines(kind: str, texts: Sequence[str]) -> None:
    for text in texts:
        if not text.strip() or "\n" in text or "\r" in text:
            raise UsageError(f"the {kind} {text!r} is not one line of text")


def check_out(out: Path, student: Student, config: ExportConfig) -> None:
    """Refuse to replace anything but a bundle, and a disk too small for the model's copies."""
    if (
        out.exists()
        and not (out / layout.MANIFEST).is_file()
        and (not out.is_dir() or any(out.iterdir()))
    ):
        raise UsageError(f"{out} exists and is no bundle; choose another --out or remove it")
    weights = sum(p.numel() * p.element_size() for p in student.parameters())
    check_writable(out, needed_bytes=(4 if config.int8 else 2) * weights)


def _preprocess_json(student: Student, preprocess: Preprocess) -> dict[str, Any]:
    """Return preprocess.json: what the runtime reads, and what a person needs to write another."""
    return {
        **asdict(preprocess),
        "channels": "RGB",
        "range": [0.0, 1.0],
        "background": "white",
        "mean": list(student.spec.mean),
        "std": list(student.spec.std),
        "normalisation": "inside model.onnx",
    }


def _write_labels(
    folder: Path,
    features: NDArray[np.float32] | None,
    names: Sequence[str],
    logit_scale: float,
) -> None:
    tensors: dict[str, NDArray[np.float32]] = {"logit_scale": np.array([logit_scale], np.float32)}
    if features is not None:
        tensors["class_features"] = features
    save_file(tensors, folder / layout.LABELS)
    write_text(folder / layout.LABELS_TEXT, "\n".join(names) + "\n")


def _write_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Write the texts and their unit features in float16: half the size, cosines to about 1e-5."""
    texts, features = vocabulary
    write_text(folder / layout.VOCABULARY_TEXT, "\n".join(texts) + "\n")
    rows = {"text_features": unit_rows(features).astype(np.float16)}
    save_file(rows, folder / layout.VOCABULARY)


def _origin(
    student: Student, extras: BundleFacts, num_classes: int, parity: Parity
) -> dict[str, Any]:
    """Return what bundle.json says of the model beside versions and checksums."""
    return {
        "student": student.spec.name,
        "teacher": extras.teacher,
        "teacher_identity": student.spec.teacher_identity,
        "licence": extras.licence,
        "method": extras.method,
        "head": student.spec.head,
        "output": output_name(student),
        "dim": student.spec.dim,
        "num_classes": num_classes,
        "logit_scale": extras.logit_scale,
        "threshold": extras.threshold,
        "parity": asdict(parity),
    }


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write bundle.json: versions, the facts, and size and sha256 of every other file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "version": layout.FORMAT_VERSION,
        "attar_version": attar.__version__,
        **facts,
        "files": {
            path.relative_to(folder).as_posix(): {
                "sha256": sha256_file(path),
                "bytes": path.stat().st_size,
            }
            for path in files
        },
    }
    write_json(folder / layout.MANIFEST, manifest)
