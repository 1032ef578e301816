"""What `attar predict` and `attar latency` can be told."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of `attar predict`."""

    labels: Path | None = None
    """Other classes than the bundle's: a class list (text or JSON) whose names the bundle's labels
    or vocabulary hold, or a .safetensors file with class_features and their names."""
    threshold: float | None = None
    """Answer "none of these" when the top confidence is below this (0 to 1); default: the
    bundle's own, or 0 (answer always) with other classes than the bundle's."""
    top: int = 5
    """How many labels to give for each image."""
    batch_size: int = 16
    """Images computed together."""
    int8: bool = False
    """Use the bundle's model in 8-bit integers (`attar export --int8`)."""
    threads: int = 0
    """Threads of the model; 0 lets onnxruntime choose."""
    json: bool = False
    """Print one JSON object a line instead of a table."""
    csv: bool = False
    """Print CSV instead of a table."""
