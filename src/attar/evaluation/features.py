"""A model's features of a table of images, computed once and kept in a file.

The file is safetensors: `features` float32 [N, D] in the table's order, with the model's identity,
and a checksum of the table's keys as metadata. A whole file that matches both is used as it is.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.device import ignore_interrupts, naming_dead_workers
from attar.errors import AttarError
from attar.evaluation.models import EvaluatedModel, Features
from attar.files import atomic_path
from attar.store.progress import Meter

_FORMAT = "2"
"""1 rounded the size that images are scaled to where timm cuts off."""
_SHOW_PROGRESS_ABOVE = 500
_IF_A_WORKER_DIES = "run the same command again, with fewer workers if memory ran out"
Prepare = Callable[[Image.Image], Any]
Picture = Callable[[int], Image.Image]
"""Row of a table -> its RGB image, where that is not simply the file at its path; picklable."""


def features_of(
    model: EvaluatedModel,
    table: ImageTable,
    out: Path,
    *,
    batch_size: int = 64,
    workers: int = 2,
    picture: Picture | None = None,
) -> Features:
    """Return a model's features [N, D] of a table: looked up where known, else computed into `out`.

    With a `picture` the table's keys must change whenever it does: they tell features apart.

    Raises:
        AttarError: see `compute_features`.
    """
    if model.lookup is None:
        compute_features(model, table, out, batch_size=batch_size, workers=workers, picture=picture)
        return read_features(out)
    features = model.lookup(table)
    _check_finite(features, table.names, model.name)
    return features


@naming_dead_workers(_IF_A_WORKER_DIES)
def compute_features(
    model: EvaluatedModel,
    table: ImageTable,
    out: Path,
    *,
    batch_size: int = 64,
    workers: int = 2,
    picture: Picture | None = None,
) -> Path:
    """Write a model's features of a table to `out`, unless the file holds exactly them already.

    Raises:
        AttarError: an image can no longer be read, a feature is not finite, the table is empty, or
            a worker died.
    """
    wanted = {"format": _FORMAT, "identity": model.identity, "keys": _keys_checksum(table)}
    if _holds(out, wanted):
        return out
    if not len(table):
        raise AttarError(f"there are no images to compute features of ({out.name})")
    if model.prepare is None or model.encode is None:
        raise AttarError(f"{model.name} ({model.role}) gives no features of new images")
    meter = Meter(f"features of {model.role}", len(table), "images")
    parts: list[Features] = []
    done = 0
    with meter if len(table) > _SHOW_PROGRESS_ABOVE else nullcontext():
        batches = image_batches(table, model.prepare, batch_size, workers, picture)
        for pixels in meter.waiting_for(batches):
            part = model.encode(pixels).detach().float().cpu().numpy()
            _check_finite(part, table.names[done : done + len(part)], model.name)
            parts.append(part)
            done += len(part)
            meter.advance(len(part))
    features = np.concatenate(parts)
    with atomic_path(out) as temporary:
        save_file(
            {"features": features}, temporary, metadata={**wanted, "sha256": _checksum(features)}
        )
    return out


def read_features(path: Path) -> Features:
    """Read the features [N, D] of a file that `compute_features` wrote."""
    try:
        with safe_open(path, framework="numpy") as file:
            features: Features = file.get_tensor("features")
    except (OSError, SafetensorError) as error:
        raise AttarError(f"{path} holds no features ({error}); delete it and evaluate again") from (
            error
        )
    return features


def image_batches(
    table: ImageTable,
    prepare: Prepare,
    batch_size: int,
    workers: int,
    picture: Picture | None = None,
) -> Iterator[Tensor]:
    """Yield prepared images [B, 3, H, W] in the table's order, read by `workers` processes.

    Raises:
        AttarError: an image that cannot be read (it is named), or a worker died.
    """
    # Starting a process takes longer than reading one batch.
    workers = workers if len(table) > batch_size else 0
    loader = DataLoader(
        _Images(table.paths, prepare, picture),
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=ignore_interrupts if workers else None,
        collate_fn=_collate,
        # Its own: a loader draws a number at its start, and training's next one must not change.
        generator=torch.Generator(),
    )
    with naming_dead_workers(_IF_A_WORKER_DIES):
        for batch in loader:
            if isinstance(batch, str):
                raise AttarError(batch)
            yield batch


class _Images(Dataset[Any]):
    """Prepared images by position; what goes wrong is returned as text.

    An exception that crosses from a worker arrives as a page of traceback instead.
    """

    def __init__(
        self, paths: Sequence[str], prepare: Prepare, picture: Picture | None = None
    ) -> None:
        self.paths = paths
        self.prepare = prepare
        self.picture = picture

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        path = self.paths[index]
        try:
            image = read_image(path) if self.picture is None else self.picture(index)
            return torch.as_tensor(self.prepare(image))
        except AttarError as error:
            return f"{error}; mend or remove it and run again"
        except (OSError, ValueError, RuntimeError) as error:
            return f"{path} cannot be prepared ({error}); mend or remove it and run again"


def _collate(items: Sequence[Tensor | str]) -> Tensor | str:
    errors = [item for item in items if isinstance(item, str)]
    return errors[0] if errors else torch.stack([i for i in items if isinstance(i, Tensor)])


def _holds(path: Path, wanted: Mapping[str, str]) -> bool:
    """Tell whether a feature file is there, whole, and of the wanted model and images."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if any(metadata.get(key) != value for key, value in wanted.items()):
                return False
            return metadata.get("sha256") == _checksum(file.get_tensor("features"))
    except (OSError, SafetensorError):
        return False


def _checksum(features: Features) -> str:
    return hashlib.sha256(features.tobytes()).hexdigest()


def _keys_checksum(table: ImageTable) -> str:
    return hashlib.sha256("\n".join(table.keys).encode()).hexdigest()


def _check_finite(features: Features, names: Sequence[str], model: str) -> None:
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise AttarError(
            f"{model} gives features that are not finite for {len(broken)} image(s), first "
            f"{names[broken[0]]}; the model is damaged or its training diverged"
        )
