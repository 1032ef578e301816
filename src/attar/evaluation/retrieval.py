"""Training-free few-shot classification by retrieval (Tip-Adapter, Zhang et al., ECCV 2022).

A few labelled images a class become keys; an image is drawn to the classes of the keys that its
features resemble. Li et al. (ICCV 2023) query with the student's features; their code takes the
keys from the teacher, their appendix E from the student. Both lie in one space, so the choice is
whose features the caller passes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.evaluation.metrics import Array, Floats, Indices, as_array, unit
from attar.evaluation.models import EvaluatedModel, Features
from attar.files import sha256_text

_ROWS_AT_ONCE = 1024
_OPERATIONS, _MAGNITUDE = 2, 9
"""RandAugment(2, 9), as Li et al. augment the shots."""


def tip_adapter_logits(
    queries: Array,
    keys: Array,
    key_labels: Array,
    class_features: Array,
    alpha: float = 1.0,
    beta: float = 5.5,
    scale: float = 1.0,
) -> Floats:
    """Return zero-shot logits plus what the few-shot keys add to each class.

        logits[n, c] = scale * q_n·t_c + alpha * Σ_m exp(-beta * (1 - q_n·k_m)) * 1[label_m = c]

    Rows are brought to length 1 first. Li et al.'s code takes the cosines as they are (scale 1);
    Tip-Adapter multiplies them by CLIP's logit scale, 100, so that the keys weigh less.

    Args:
        queries: [N, D] the student's features of the images to classify.
        keys: [M, D] the features of the shots, or of their views, by the student or the teacher.
        key_labels: [M] the class of each key, in 0 ... C-1.
        class_features: [C, D] the classes that are ranked.
        alpha: weight of the keys; 0 is zero-shot classification.
        beta: sharpness: how fast a key's vote falls as the cosine falls below 1.
        scale: factor on the zero-shot cosines.

    Returns:
        [N, C] float64.

    Raises:
        ValueError: keys and labels that differ in number, or a label outside 0 ... C-1.
    """
    query, key, text = unit(queries), unit(keys), unit(class_features)
    labels = as_array(key_labels).astype(np.int64)
    if labels.shape != (len(key),):
        raise ValueError(f"{len(key)} keys have labels of shape {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(text):
        raise ValueError(
            f"key labels {labels.min()} ... {labels.max()}: there are {len(text)} classes"
        )
    votes = np.zeros((len(key), len(text)))
    votes[np.arange(len(key)), labels] = alpha
    logits = np.asarray(scale * (query @ text.T))
    for start in range(0, len(query), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        logits[rows] += np.exp(-beta * (1 - query[rows] @ key.T)) @ votes
    return logits


def augmented_keys(
    model: EvaluatedModel,
    table: ImageTable,
    *,
    views: int = 10,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[Features, Indices]:
    """Return a model's features of several views of every shot, and their labels.

    View 0 is the image itself, the others are RandAugment(2, 9) of it, each a pure function of
    (seed, the file's bytes, view). Every view goes through the model's own preprocessing.

    Args:
        model: the student or the teacher; one that only looks features up cannot be asked.
        table: the shots, M labelled images.
        views: views an image, the image itself included.
        seed: decides the augmentations.
        batch_size: views in one forward pass.

    Returns:
        Unit features [M * views, D], the views of an image one after the other, and the labels of
        these rows.

    Raises:
        UsageError: fewer than one view, or an image without a label.
        AttarError: the model takes no new images, or an image can no longer be read.
    """
    if views < 1:
        raise UsageError(f"{views} views a shot: give at least 1")
    if not len(table) or min(table.labels) < 0:
        raise UsageError("every shot needs a label: give labelled images")
    prepare, encode = model.prepare, model.encode
    if prepare is None or encode is None:
        raise AttarError(
            f"{model.name} ({model.role}) gives no features of new images; load the model itself"
        )
    features: list[Features] = []
    waiting: list[torch.Tensor] = []
    total = len(table) * views
    for number in range(total):
        row, view = divmod(number, views)
        if view == 0:
            image = read_image(table.paths[row])
        waiting.append(torch.as_tensor(prepare(_augment(image, table.keys[row], view, seed))))
        if len(waiting) == batch_size or number == total - 1:
            features.append(encode(torch.stack(waiting)).detach().float().cpu().numpy())
            waiting.clear()
    rows = unit(np.concatenate(features))
    labels = np.asarray(table.labels, dtype=np.int64)
    return _float32(rows), np.repeat(labels, views)


def _augment(image: Image.Image, key: str, view: int, seed: int) -> Image.Image:
    if view == 0:
        return image
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(sha256_text(f"{seed}:{key}:{view}")[:15], 16))
        augmented: Image.Image = v2.RandAugment(_OPERATIONS, _MAGNITUDE)(image)
    return augmented


def _float32(values: NDArray[np.float64]) -> Features:
    return values.astype(np.float32)
