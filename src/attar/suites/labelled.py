"""One data set of a suite: images, the classes that they are ranked among, and its metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from attar.data.checking import check_files
from attar.data.classes import ClassList
from attar.data.table import ImageTable
from attar.evaluation import metrics
from attar.evaluation.features import Picture
from attar.evaluation.metrics import Floats
from attar.evaluation.zero_shot import classification_metrics
from attar.prompts import class_texts

Metric = Literal["acc1", "mean_per_class_recall", "roc_auc", "map_11_points"]
SCORE = "score"
"""In a record's metrics: the number that its data set is reported by, whichever metric it is."""

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """A data set that is on disk."""

    name: str
    images: ImageTable
    """With the set's own class list as `class_names`."""
    prompts: Sequence[Sequence[str]]
    """[C] the prompts of each class."""
    metric: Metric = "acc1"
    picture: Picture | None = None
    """Row -> image, where that is not simply the file at its path."""
    imagenet: tuple[tuple[int, ...], ...] = ()
    """[C] the classes of ImageNet-1k that each class is; empty for classes that are none."""
    lacks: str = ""
    """What of the set is not there, in words; empty when it is whole."""


@dataclass(frozen=True)
class Missing:
    """A data set that cannot be measured."""

    name: str
    reason: str
    """What is wrong, and how to get the set: one line."""


def score(logits: Floats, on: LabelledSet) -> dict[str, float]:
    """Return the metrics of logits [N, C] on a data set, `score` among them."""
    images, values = on.images, dict[str, float]()
    if on.metric == "map_11_points":
        targets = images.multi_hot(range(len(images)))
        values[on.metric] = metrics.mean_average_precision_11_points(logits, targets)
    else:
        labels = np.asarray(images.labels, dtype=np.int64)
        values = classification_metrics(logits, labels)
        if on.metric == "roc_auc":
            # The softmax over two classes is monotone in the difference of their logits.
            values[on.metric] = metrics.roc_auc(logits[:, 1] - logits[:, 0], labels == 1)
    return {**values, SCORE: values[on.metric]}


def prompts_for(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the prompts of each class: every template filled with its name."""
    return class_texts(ClassList(tuple(class_names), ((),) * len(class_names)), templates)


@dataclass(frozen=True)
class Listed:
    """An image of a data set before it is opened."""

    path: str
    """Of a file, or the address of a tar's member."""
    name: str
    """What is shown to people."""
    labels: tuple[int, ...]
    """Its class, or all of its classes."""


def tabulate(
    listed: Sequence[Listed], class_names: Sequence[str], cache: Path, *, several: bool = False
) -> tuple[ImageTable, str]:
    """Hash and decode every image; return the table of the good ones, and what is not good.

    `several` says that images have any number of labels each. `cache` as in `check_files`.
    """
    checked = check_files([image.path for image in listed], cache)
    good = [image for image in listed if checked[image.path].reason is None]
    none = (None,) * len(good)
    table = ImageTable(
        paths=tuple(image.path for image in good),
        names=tuple(image.name for image in good),
        keys=tuple(checked[image.path].key for image in good),
        labels=tuple(-1 if several else image.labels[0] for image in good),
        domains=(-1,) * len(good),
        captions=none,
        splits=none,
        class_names=tuple(class_names),
        label_sets=tuple(tuple(sorted(image.labels)) for image in good) if several else (),
    )
    broken = [image for image in listed if checked[image.path].reason is not None]
    if not broken:
        return table, ""
    some = ", ".join(f"{i.name}: {checked[i.path].reason}" for i in broken[:_SHOWN])
    return table, f"{len(broken):,} of {len(listed):,} images cannot be read ({some})"
