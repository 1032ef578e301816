"""The texts of each class in each source domain, "a sketch of a dog", that some methods compare
images with: asked about once, kept in the run's store, and given to training with every batch.
"""

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
from attar.stages.sentences import check_texts
from attar.store.embed import embed_texts
from attar.store.missing import count_missing_texts
from attar.store.store import open_store

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


def _flat(job: Job) -> list[str]:
    return [text for of_class in texts(job) for text in of_class]


def check(job: Job, store_path: Path) -> None:
    """Refuse what cannot be asked about; write and ask nothing.

    Raises:
        UsageError: no domain is named, or a store lacks texts while no teacher is given.
    """
    flat = _flat(job)
    if flat:
        check_texts(flat, job.teacher, store_path, job.config.embed)


def count_missing(job: Job, store_path: Path) -> int:
    """Return how many texts the teacher is still to be asked about."""
    if job.teacher is None:
        return 0
    return count_missing_texts(open_store(store_path), _flat(job))


def consult(job: Job, store_path: Path) -> None:
    """Ask the teacher about the texts that the store lacks."""
    if job.teacher is not None and count_missing(job, store_path):
        embed_texts(job.teacher, _flat(job), store_path, job.config.embed)


def streams(job: Job, knowledge: Knowledge | None) -> Streams:
    """Return the stream of the unit features [C, S, D], the same at every step."""
    wanted = texts(job)
    if not wanted or knowledge is None:
        return {}
    found = np.asarray(knowledge.store.text_features(_flat(job)), dtype=np.float32)
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
