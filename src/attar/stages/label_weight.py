"""Where the teacher is weak on the training images: what `--method.label-weight auto` goes by.

Learnt from source training images and what the store already holds; nothing is asked for it.
"""

import logging

import torch
from torch import Tensor

from attar.data.table import ImageTable, concatenate
from attar.errors import AttarError
from attar.evaluation.models import feature_parts
from attar.losses import aligned
from attar.methods.base import ClassFeatures
from attar.methods.label_weight import STREAM, reliability
from attar.stages.corpus import Streams
from attar.stages.embedding import Knowledge
from attar.stages.job import Job
from attar.store.store import Store

log = logging.getLogger(__name__)


def streams(job: Job, knowledge: Knowledge | None, class_features: ClassFeatures | None) -> Streams:
    """Return the stream of the teacher's reliability [S + 1, C], the same at every step.

    Its zero-shot answers are those under `class_features`, which the run trains towards.
    """
    if not _wanted(job) or knowledge is None:
        return {}
    if class_features is None:
        raise AttarError("label weight auto needs class features")
    table, classes = _training_images(job), class_features()
    labels, domains = torch.tensor(table.labels), torch.tensor(table.domains)
    right = _right(knowledge.store, table, classes)
    found = reliability(right, domains, labels, len(table.domain_names), len(table.class_names))
    _log(1 - job.recipe[1].image_weight * found, table)
    return {STREAM: lambda step: found}


def _right(store: Store, table: ImageTable, classes: Tensor) -> Tensor:
    """Say for which images the teacher's nearest class [C, D] is their label: bool [N]."""
    labels = torch.tensor(table.labels)
    right = torch.empty(len(labels), dtype=torch.bool)
    start = 0
    for part in feature_parts(store, table):
        rows = slice(start, start + len(part))
        right[rows] = aligned(torch.from_numpy(part), classes, labels[rows])
        start += len(part)
    return right


def stand_in(job: Job) -> Streams:
    """Return a stream of the same shape, to time a step before the teacher was asked."""
    if not _wanted(job):
        return {}
    table = _training_images(job)
    shape = (len(table.domain_names) + 1, len(table.class_names))
    return {STREAM: lambda step: torch.ones(shape)}


def _wanted(job: Job) -> bool:
    return getattr(job.recipe[1], "label_weight", None) == "auto"


def _training_images(job: Job) -> ImageTable:
    """Return the images of the feed: its labels and domains are indices into this table's names."""
    train, few_shot = job.source.train, job.source.few_shot
    return concatenate([train, few_shot]) if len(few_shot) else train


def _log(weights: Tensor, table: ImageTable) -> None:
    """Say how much weight the labels have on each domain's images, and on which class most.

    `weights` [S + 1, C] are those of the labels.
    """
    labels, domains = torch.tensor(table.labels), torch.tensor(table.domains)
    for domain in sorted(set(table.domains)):
        here = (domains == domain) & (labels >= 0)
        if here.any():
            name = table.domain_names[domain] if domain >= 0 else "images without a domain"
            of_images = weights[domain, labels[here]]
            most = int(labels[here][of_images.argmax()])
            log.info(
                "label weight on %s: %.2f (at most %.2f, %s)",
                name,
                of_images.mean(),
                of_images.max(),
                table.class_names[most],
            )
