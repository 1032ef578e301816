"""The texts that a run asks the teacher about beside the prompts: sentences to learn from, and what
some methods compare images with or take for a class.

Each stage of such texts says what they are (`asked`) and refuses what it cannot use (`check`). That
they can be had, how many are missing, and the asking are the same for all and stand here.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from attar.stages import class_embeddings, corpus, domain_texts
from attar.stages.job import Job
from attar.stages.sentences import check_texts
from attar.store.embed import embed_texts
from attar.store.missing import count_missing_texts
from attar.store.store import open_store

_STAGES = (corpus, domain_texts, class_embeddings)


def check(job: Job, store_path: Path) -> None:
    """Refuse texts that cannot be used or had; write and ask nothing.

    Raises:
        UsageError: as each stage's `check`; or the store lacks texts and no teacher is given, or is
            another teacher's.
    """
    for stage in _STAGES:
        stage.check(job, store_path)
    check_texts(_asked(job), job.teacher, store_path, job.config.embed)


def count_missing(job: Job, store_path: Path) -> int:
    """Return how many texts the teacher is still to be asked about."""
    return 0 if job.teacher is None else count_missing_texts(open_store(store_path), _asked(job))


def consult(job: Job, store_path: Path) -> None:
    """Ask the teacher about the texts that the store lacks."""
    missing = count_missing(job, store_path)
    if missing and job.teacher is not None:
        embed_texts(job.teacher, _asked(job), store_path, job.config.embed, missing=missing)


def _asked(job: Job) -> Iterator[str]:
    """Yield the texts of all stages; nothing is kept, since there may be millions."""
    return chain.from_iterable(stage.asked(job) for stage in _STAGES)
