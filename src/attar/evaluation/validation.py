"""What training is allowed to see of a student's quality: a callable on source validation images.

N: validation images, C: classes, D: the teacher's joint dimension. Training knows only the
callable; the pipeline makes it, from source images alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation import metrics
from attar.evaluation.features import image_batches
from attar.evaluation.metrics import Array, as_array
from attar.evaluation.models import student_outputs, student_transform
from attar.losses import feature_mse, kl_distillation
from attar.students.student import Student

Validator = Callable[[Student], dict[str, float]]
ClassFeatureSource = Array | Callable[[], Tensor] | None

CACHE_BYTES = 1_000_000_000
"""Decoded images are kept in memory up to this size; more are read again at every validation."""


def make_validator(
    table: ImageTable,
    teacher_features: Array | None,
    class_features: ClassFeatureSource,
    *,
    batch_size: int = 64,
    workers: int = 2,
    cache_bytes: int = CACHE_BYTES,
) -> Validator:
    """Return the function that measures a student on source validation images.

    It returns, as far as they can be known: `loss`, `acc1`, `mean_per_class_recall`, `agreement`
    (share of images put into the teacher's class), `mean_cosine` with the teacher, and `selection`,
    the number that chooses the best checkpoint (higher is better): recall averaged over classes
    where labels and a classifier exist, else mean cosine, which moves with every image, else
    agreement, which moves in steps of one.

    `loss` is smooth in the weights: cross-entropy on labels where `selection` uses labels, else the
    KL divergence from the teacher's class probabilities, else 2 - 2 cos.

    Args:
        table: the source validation images.
        teacher_features: [N, D] in the table's order, or None.
        class_features: [C, D] of the table's classes, or what returns them anew at every
            validation (learnt prompts), or None. A plain classifier brings its own logits.
        batch_size: images in one forward pass.
        workers: processes that read images.
        cache_bytes: see `CACHE_BYTES`.

    Raises:
        UsageError: no images, or teacher features of other images.
    """
    if not len(table):
        raise UsageError("there are no source validation images; raise the validation fraction")
    if teacher_features is not None and len(teacher_features) != len(table):
        raise UsageError(
            f"{len(teacher_features)} teacher features do not fit {len(table)} validation images"
        )
    images = _Images(table, batch_size, workers, cache_bytes)
    labels = np.asarray(table.labels, dtype=np.int64)
    teacher = None if teacher_features is None else as_array(teacher_features).astype(np.float32)

    def validate(student: Student) -> dict[str, float]:
        outputs = torch.cat([_output(student, pixels) for pixels in images.batches(student)])
        classes = _current(class_features)
        return _measure(student, outputs, labels, teacher, classes)

    return validate


def _measure(
    student: Student,
    outputs: Tensor,
    labels: NDArray[np.int64],
    teacher: NDArray[np.float32] | None,
    classes: Tensor | None,
) -> dict[str, float]:
    scale, plain = student.spec.logit_scale, student.spec.head == "classes"
    logits = outputs if plain else _cosines(outputs, classes, scale)
    wanted = None if teacher is None else torch.from_numpy(teacher)
    teacher_logits = None if wanted is None else _cosines(wanted, classes, scale)
    result: dict[str, float] = {}
    losses: list[Tensor] = []
    chosen: list[float] = []
    known = labels >= 0
    if logits is not None and known.any():
        scores, targets = logits[known], torch.from_numpy(labels[known])
        result["acc1"] = metrics.acc1(scores, targets)
        best = metrics.top_k(scores, 1)[:, 0]
        result["mean_per_class_recall"] = metrics.mean_per_class_recall(best, targets)
        losses.append(F.cross_entropy(scores, targets))
        chosen.append(result["mean_per_class_recall"])
    if logits is not None and teacher_logits is not None:
        own, theirs = metrics.top_k(logits, 1), metrics.top_k(teacher_logits, 1)
        result["agreement"] = metrics.agreement(own[:, 0], theirs[:, 0])
        losses.append(kl_distillation(logits, teacher_logits, temperature=1.0))
    if wanted is not None and not plain:
        result["mean_cosine"] = metrics.mean_cosine(outputs, wanted)
        losses.append(feature_mse(outputs, wanted))
        chosen.append(result["mean_cosine"])
    if "agreement" in result:
        chosen.append(result["agreement"])
    if not chosen:
        raise UsageError(
            "validation has nothing to measure by: it needs labels and class features, or a "
            "teacher's features"
        )
    return {"loss": float(losses[0]), **result, "selection": chosen[0]}


def _output(student: Student, pixels: Tensor) -> Tensor:
    return student_outputs(student, pixels).float().cpu()


def _cosines(features: Tensor, classes: Tensor | None, scale: float) -> Tensor | None:
    if classes is None:
        return None
    return scale * F.normalize(features, dim=-1) @ F.normalize(classes, dim=-1).T


def _current(class_features: ClassFeatureSource) -> Tensor | None:
    """Return the class features [C, D] of this moment on the CPU."""
    if class_features is None:
        return None
    with torch.no_grad():
        values = class_features() if callable(class_features) else class_features
    return torch.from_numpy(as_array(values).astype(np.float32))


class _Images:
    """The validation images as the student sees them, decoded once where memory allows."""

    def __init__(self, table: ImageTable, batch_size: int, workers: int, cache_bytes: int) -> None:
        self.table, self.batch_size, self.workers = table, batch_size, workers
        self.cache_bytes = cache_bytes
        self.cache: Tensor | None = None
        self.cached_for: Any = None

    def batches(self, student: Student) -> Iterator[Tensor]:
        """Yield uint8 [B, 3, size, size] in the table's order."""
        size, transform = student.spec.image_size, student_transform(student)
        if self.cache is None or self.cached_for != transform:
            fresh = image_batches(self.table, transform, self.batch_size, self.workers)
            if len(self.table) * 3 * size * size > self.cache_bytes:
                yield from fresh
                return
            self.cache, self.cached_for = torch.cat(list(fresh)), transform
        for start in range(0, len(self.cache), self.batch_size):
            yield self.cache[start : start + self.batch_size]
