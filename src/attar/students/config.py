"""What a user may choose about the student; free of torch so that `--help` is quick."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from attar.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Options under `--student.`."""

    weights: str = "auto"
    """"auto" (timm's, found on this machine or else fetched; offline from scratch, with a warning),
    "timm" (from the hub and its cache alone, or an error), "none", or the path of a .safetensors
    or .pth file or of a student folder."""
    image_size: int | None = None
    """Input side in pixels; the backbone's own by default."""
    crop_pct: float | None = None
    """Share of the shorter side that the centre crop keeps in evaluation; the backbone's own by
    default. OpenCLIP keeps all of it: 1."""
    freeze_bn: bool | None = None
    """Keep the backbone's running BatchNorm statistics as they were before training, and use them;
    by default as the method has it: white-box methods do, the others do not."""
    projection: Literal["random", "fitted"] | None = None
    """Start the projection at random, or at the ridge solution from the untrained backbone's
    features to the teacher's; at random where the method does not set the other."""
    projection_bias: bool | None = None
    """Whether the projection has a bias, as it does by default; without one it is zero and stays
    so, as in DIME-FM."""
    gelu: bool = False
    """GELU behind the projection, an ablation of VL2V; plain classifiers have none. timm's file of
    such a student lacks it: it is to be loaded with attar, or exported as a bundle."""
    projector: Literal["linear", "mlp"] | None = None
    """What brings features into the teacher's space: the projection alone, or BatchNorm, ReLU and a
    second linear layer of the teacher's width behind it; the projection alone where the method does
    not set the other. Plain classifiers have none. timm's file of a student with "mlp" lacks what
    is behind the projection: it is to be loaded with attar, or exported as a bundle."""
    drop_path: float | None = None
    """Stochastic depth while training: the chance that a residual block is left out; the backbone's
    own by default."""

    UNSET: ClassVar[Mapping[str, Any]] = {
        "freeze_bn": False,
        "projection": "random",
        "projector": "linear",
    }
    """What None means where the method sets nothing."""

    def __post_init__(self) -> None:
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UsageError(f"--student.crop-pct {self.crop_pct}: give a share above 0, at most 1")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise UsageError(f"--student.drop-path {self.drop_path}: give a share from 0, below 1")
        if self.projection == "fitted" and self.projection_bias is False:
            raise UsageError(
                "--student.projection fitted comes with a bias: add --student.projection-bias"
            )
        if self.projection == "fitted" and self.projector == "mlp":
            raise UsageError(
                "--student.projection fitted is one linear map, which --student.projector mlp is "
                "not: add --student.projector linear, or --student.projection random"
            )
