"""What `attar export` can be told, and the facts a bundle carries about its origin."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attar.errors import UsageError
from attar.records import Record


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of `attar export`."""

    vocabulary: Path | None = None
    """A class list (text or JSON) whose text features go into the bundle, so that classes can be
    changed on the device without the teacher."""
    threshold: float | None = None
    """Confidence (0 to 1) below which the bundle answers "none of these"; default: the one found
    on validation images, or 0 (answer always) with other classes than the run's."""
    parity_images: int = 16
    """How many real images the exported model must agree with the student on."""
    tolerance: float = 1e-4
    """Largest allowed difference between torch and onnxruntime in any output value; for logits,
    relative to the largest of them when that is above 1."""
    min_cosine: float = 0.9999
    """Smallest allowed cosine between the two outputs of one image."""
    int8: bool = False
    """Also write the model in 8-bit integers, unless it then answers otherwise than before."""
    int8_images: int = 128
    """How many training images the ranges of its values are found on."""
    int8_min_agreement: float = 0.95
    """Smallest share of source validation images that int8 must call what fp32 calls them."""
    int8_min_cosine: float = 0.9
    """Smallest mean cosine, over the same images, between the outputs of int8 and fp32."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"the threshold {self.threshold} is not a confidence between 0 and 1")
        for name in ("parity_images", "int8_images"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("int8_min_agreement", "int8_min_cosine"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class OpenCLIPConfig:
    """Settings of `attar export --format openclip` alone."""

    teacher: str | None = None
    """Where the run's OpenCLIP teacher is, if not where it was; its weights must be the same."""
    whole_image: bool = False
    """Let a student that evaluates on a crop see the whole shorter side, as OpenCLIP always does;
    its results are then others than the run's."""


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """Where the student comes from and how to read its output: for bundle.json and the card."""

    teacher: str
    """The teacher's name, empty for a student trained without one."""
    licence: str | None = None
    """The line about the teacher's licence, None when its weights bind nothing."""
    method: str = ""
    logit_scale: float = 100.0
    """What cosines are multiplied with before the softmax; for head "classes" the inverse
    temperature of the logits (1.0 leaves them as trained)."""
    threshold: float = 0.0
    """Confidence below which the answer is "none of these"; 0 answers always."""
    datasets: tuple[str, ...] = ()
    """Names of the data the student was trained on."""
    metrics: Sequence[Record] = ()
    """Measured results for the card's table."""
