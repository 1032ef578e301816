"""The texts of each class in each source domain, "a sketch of a dog", that some methods compare
images with: asked about once, kept in the run's store, and given to training with every batch.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from attar.errors import UsageError
from attar.prompts import domain_prompts
from attar.stages.class_embeddings import domains_of
from attar.stages.corpus import Streams
from attar.stages.embedding import Knowledge
from attar.stages.job import Job

_STREAM = "domain_texts"


def texts(job: Job) -> list[list[str]]:
    """Return [C][S] texts of the trained classes in the source domains; none where not wanted.

    The domains are those of the training images, never the one held out; underscores read as
    spaces.

    Raises:
        UsageError: the training images name no domain.
    """
    method, options = job.recipe
    words = method.domain_texts(options)
    if words is None:
        return []
    table = job.source.train
    words = words or domains_of(table)
    if not words:
        raise UsageError(
            f"method {method.name} compares with texts of domains, and no training image has one: "
            "give words for them, as in --method.anchors '[dark photo, good photo]'"
        )
    return domain_prompts(table.class_names, words)


def check(job: Job, store_path: Path) -> None:
    """Refuse what cannot be asked about: no domain is named (UsageError)."""
    texts(job)


def asked(job: Job) -> Iterator[str]:
    """Yield the texts as the teacher is asked about them."""
    return chain.from_iterable(texts(job))


def streams(job: Job, knowledge: Knowledge | None) -> Streams:
    """Return the stream of the unit features [C, S, D], the same at every step."""
    wanted = texts(job)
    if not wanted or knowledge is None:
        return {}
    found = np.asarray(knowledge.store.text_features(list(asked(job))), dtype=np.float32)
    features = F.normalize(torch.from_numpy(found), dim=-1)
    shaped = features.view(len(wanted), len(wanted[0]), -1)
    return {_STREAM: lambda step: shaped}


def stand_in(job: Job) -> Streams:
    """Return random features of the same shape, to time a step before the teacher was asked."""
    wanted = texts(job)
    if not wanted:
        return {}
    features = torch.randn(len(wanted), len(wanted[0]), job.student.spec.dim)
    return {_STREAM: lambda step: features}
