"""Sample predictions with small embedded copies of their images."""

import base64
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from attar.errors import AttarError
from attar.members import read_bytes
from attar.report.analysis import choose_samples
from attar.report.config import ReportConfig
from attar.report.read import Predictions


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and what was said about it."""

    name: str
    domain: str
    label: str | None
    answer: str
    confidence: float
    correct: bool | None
    runners_up: tuple[tuple[str, float], ...]
    """The second and third answers."""
    others: tuple[tuple[str, str, float], ...]
    """(role, answer, confidence) of the teacher and the baseline on the same image."""
    thumbnail: str | None
    """A data URI, or None where the image is gone or was not to be embedded."""


@dataclass(frozen=True, kw_only=True)
class SampleGroup:
    """Samples that were chosen in one way."""

    title: str
    how: str
    samples: tuple[Sample, ...]


def sample_groups(
    student: Predictions, others: Mapping[str, Predictions], config: ReportConfig
) -> list[SampleGroup]:
    """Choose samples of the student's answers, with what the models in `others` (by role) said."""
    if config.samples < 1 or not len(student):
        return []
    rows = {role: {name: i for i, name in enumerate(table.names)} for role, table in others.items()}

    def sample(index: int) -> Sample:
        name = student.names[index]
        said = tuple(
            (role, table.answers[row], float(table.confidence[row]))
            for role, table in others.items()
            if (row := rows[role].get(name)) is not None
        )
        correct = student.correct[index]
        return Sample(
            name=name,
            domain=student.domains[index] or "",
            label=student.labels[index],
            answer=student.answers[index],
            confidence=float(student.confidence[index]),
            correct=bool(correct) if np.isfinite(correct) else None,
            runners_up=student.top5[index][1:3] if student.top5 else (),
            others=said,
            thumbnail=_embed(student.paths[index], config),
        )

    return [
        SampleGroup(title=title, how=how, samples=tuple(sample(index) for index in indices))
        for title, how, indices in choose_samples(student, others.get("teacher"), config.samples)
    ]


def _embed(path: str | None, config: ReportConfig) -> str | None:
    if not (path and config.thumbnails):
        return None
    data = thumbnail(path, config.thumbnail_size)
    return None if data is None else "data:image/jpeg;base64," + base64.b64encode(data).decode()


def thumbnail(path: str | Path, size: int) -> bytes | None:
    """Return a small JPEG (longer side at most `size` pixels), None if the file cannot be read.

    It is shown as a person sees it: turned as EXIF says, transparency on white.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(read_bytes(path))) as opened:
            warnings.simplefilter("ignore")  # odd metadata; decoding itself still raises
            image: Image.Image = _eight_bit(ImageOps.exif_transpose(opened))
            image.thumbnail((size, size))
            image = image.convert("RGBA") if _transparent(image) else image.convert("RGB")
            if image.mode == "RGBA":
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image).convert("RGB")
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=78, optimize=True)
            return buffer.getvalue()
    except (OSError, ValueError, SyntaxError, EOFError, AttarError, Image.DecompressionBombError):
        return None


def _transparent(image: Image.Image) -> bool:
    return image.has_transparency_data


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; convert palettes, which do not shrink well."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.mode == "P":
        return image.convert("RGBA")
    return image
