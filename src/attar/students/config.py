"""What a user may choose about the student; free of torch so that `--help` is quick."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Options under `--student.`."""

    weights: str = "auto"
    """"auto" (weights found on this machine, else from scratch), "none", "timm" (download), or the
    path of a .safetensors/.pth file or of a student folder."""
    image_size: int | None = None
    """Input side in pixels; the backbone's own by default."""
    freeze_bn: bool = False
    """Keep BatchNorm's running statistics as they were before training, and use them."""
    projection: Literal["random", "fitted"] = "random"
    """Start the projection at random, or at the ridge solution from the untrained backbone's
    features to the teacher's."""
