"""What stands for a class where a method asks for something other than the run's prompts.

Texts are asked about once and kept in the run's store, like prompts; means of images cost nothing.
"""

import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.class_embeddings import class_means
from attar.evaluation.models import feature_parts
from attar.methods.base import ClassEmbedding
from attar.prompts import domain_prompts
from attar.stages.embedding import Knowledge, read_class_features
from attar.stages.job import Job

log = logging.getLogger(__name__)


def choice(job: Job) -> ClassEmbedding:
    """Return what the method's options ask for; "prompts" where there is nothing special."""
    method, options = job.recipe
    return method.class_embedding(options)


def texts(job: Job) -> list[list[str]]:
    """Return [C] the texts of each of the run's classes; none where prompts or images stand."""
    names = job.images.class_names
    if choice(job) == "index":
        return [[f"a photo of a {number}"] for number in range(len(names))]
    seen = {"source-domains": job.source.train, "all-domains": job.images}.get(choice(job))
    return [] if seen is None else domain_prompts(names, domains_of(seen))


def domains_of(table: ImageTable) -> tuple[str, ...]:
    """Return the names of the domains that images of a table lie in."""
    return tuple(table.domain_names[i] for i in sorted({d for d in table.domains if d >= 0}))


def check(job: Job, store_path: Path) -> None:
    """Refuse what cannot be made; write and ask nothing.

    Raises:
        UsageError: no domain is named, or a class has no source image to take the mean of.
    """
    if choice(job) == "source-images":
        images = job.source.train
        empty = set(range(len(images.class_names))) - set(images.labels)
        if empty:
            raise UsageError(
                f"--method.class-embedding source-images: class {images.class_names[min(empty)]!r} "
                "has no training image; leave the option out"
            )
    of_classes = texts(job)
    if of_classes and not of_classes[0]:
        raise UsageError(
            f"--method.class-embedding {choice(job)} is made of the domains' names, and no "
            "training image has one: leave it out"
        )
    if choice(job) == "all-domains":
        log.warning("--method.class-embedding all-domains knows the held-out domain: an oracle")


def asked(job: Job) -> Iterator[str]:
    """Yield the texts as the teacher is asked about them."""
    return chain.from_iterable(texts(job))


def features(job: Job, knowledge: Knowledge) -> tuple[tuple[str, ...], Tensor]:
    """Return the classes that have an embedding of the kind asked for, and it: unit rows [C, D]."""
    if choice(job) == "source-images":
        images = job.source.train
        parts = feature_parts(knowledge.store, images)
        means = class_means(parts, np.asarray(images.labels), images.class_names)
        return images.class_names, torch.from_numpy(means).float()
    return job.images.class_names, read_class_features(knowledge.store, texts(job))
