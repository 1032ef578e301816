"""Stop a run whose loss is not finite, and name the batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attar.errors import AttarError
from attar.files import write_json
from attar.types import Batch, Loss

NAN_FILE = "nan_batch.json"


def is_finite(value: Tensor) -> bool:
    """Whether a 0-dim tensor is neither infinite nor NaN."""
    return bool(torch.isfinite(value))


def not_finite(
    what: str, value: Tensor, where: str, loss: Loss, batch: Batch, paths: Sequence[str], file: Path
) -> AttarError:
    """Write the batch to `file` and return the error that names it.

    `what` is "loss" or "gradient norm", `where` names step and phase.
    """
    number = float(value.detach())
    images = [{"key": k, "path": p} for k, p in zip(batch.keys, paths, strict=True)]
    # As text: JSON has no NaN.
    terms = {name: f"{float(term.detach()):g}" for name, term in loss.terms.items()}
    facts = {"at": where, what.replace(" ", "_"): f"{number:g}", "terms": terms}
    write_json(file, {**facts, "images": images})
    listed = ", ".join(f"{name} {term}" for name, term in terms.items())
    return AttarError(
        f"the {what} is {number:g} at {where} ({listed}); first image {paths[0]}, the whole "
        f"batch is in {file}; lower --training.lr, set --training.clip-norm, or use "
        "--training.precision fp32"
    )
