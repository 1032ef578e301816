"""The sentences that a run learns from, unpaired with its images: checked, embedded, streamed.

They come from a file, whose sentences go to the run's store like class prompts, or are all the
texts of a store made before; the classes' prompts may join those of a file.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attar.data.sentences import Entry
from attar.errors import UsageError
from attar.files import read_json, write_json
from attar.run import RunFolder
from attar.stages.embedding import Knowledge
from attar.stages.job import Job
from attar.stages.sentences import entries_of, texts_of
from attar.store.layout import check_teacher
from attar.store.missing import in_parts
from attar.store.store import Store
from attar.teachers.base import TeacherInfo
from attar.training.streams import TextStream, beginnings

Streams = dict[str, Callable[[int], Tensor]]
_PART = 8192
"""Entries whose rows are looked up at once."""


def check(job: Job, store_path: Path) -> None:
    """Refuse sentences that cannot be learnt from; write and ask nothing.

    Raises:
        UsageError: the method learns from none, or they are a store that is of another teacher,
            empty, or to be joined with prompts.
    """
    texts = job.config.texts
    if "text" not in job.needs:
        if texts is not None:
            raise UsageError(
                f"method {job.recipe[0].name} learns from no sentences: leave --texts out, or use "
                "--method dime-fm"
            )
        return
    if texts is not None and _is_store(texts):
        _check_store(job, texts, store_path)


def asked(job: Job) -> Iterator[str]:
    """Return the sentences of the file, read as they are needed; a store's are known already.

    The classes' prompts are asked about with the images.
    """
    config = job.config
    if "text" not in job.needs or config.texts is None or _is_store(config.texts):
        return iter(())
    return texts_of(config.texts, config.data.templates)


def streams(job: Job, knowledge: Knowledge | None, run: RunFolder) -> Streams:
    """Return the run's text stream for this process, as the feed takes it; none where not needed.

    A whole store is learnt from as it was when the run began: it may have grown since.

    It remembers 8 bytes a text (and 8 an entry where entries have several), and nothing where all
    texts of a store are learnt from.
    """
    if "text" not in job.needs or knowledge is None:
        return {}
    whole = _whole_store(job)
    store, rows, starts, first = knowledge.store, None, None, None
    if whole is not None:
        store = Store.open(whole)
        first = _texts_at_the_start(store, run.corpus)
    else:
        lengths: list[NDArray[np.int64]] = []

        def texts() -> Iterator[list[str]]:
            for part in in_parts(_entries(job), _PART):
                lengths.append(np.array([len(entry) for entry in part]))
                yield [text for entry in part for text in entry]

        rows = store.text_rows_of(texts())
        starts = beginnings(np.concatenate(lengths)) if len(rows) > sum(map(len, lengths)) else None
    stream = TextStream(
        store,
        rows,
        starts,
        batch_size=_batch_size(job),
        first=first,
        seed=job.config.training.seed,
        rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")),
    )
    return {"text": stream}


def _texts_at_the_start(store: Store, noted: Path) -> int:
    """Return how many texts the store had when the run began, noting it then.

    Raises:
        UsageError: the store has fewer now.
    """
    if not noted.is_file():
        write_json(noted, {"texts": store.num_texts})
    first = int(read_json(noted)["texts"])
    if first > store.num_texts:
        raise UsageError(
            f"--texts {store.path} has {store.num_texts:,} texts, and had {first:,} when the run "
            "began: give that store again, or choose another --out"
        )
    return first


def stand_in(job: Job) -> Streams:
    """Return a text stream of random features, to time a step before the teacher was asked."""
    if "text" not in job.needs:
        return {}
    features = F.normalize(torch.randn(_batch_size(job), job.student.spec.dim), dim=-1)
    return {"text": lambda step: features}


def _entries(job: Job) -> Iterator[Entry]:
    """Yield what the file holds, then the prompts of each class the student is trained on."""
    config = job.config
    if config.texts is not None:
        yield from entries_of(config.texts, config.data.templates)
    if job.recipe[1].class_prompts:
        trained = set(job.source.train.class_names)
        for name, prompts in zip(job.images.class_names, job.texts, strict=True):
            if name in trained:
                yield tuple(prompts)


def _batch_size(job: Job) -> int:
    chosen: int | None = job.recipe[1].text_batch
    return chosen or job.config.training.batch_size


def _whole_store(job: Job) -> Path | None:
    """Return the store whose texts are all learnt from, or None."""
    texts = job.config.texts
    return texts if texts is not None and _is_store(texts) else None


def _is_store(path: Path) -> bool:
    return (path / "store.json").is_file()


def _check_store(job: Job, texts: Path, store_path: Path) -> None:
    store = Store.open(texts)
    known: TeacherInfo | None = None if job.teacher is None else job.teacher.info
    if known is None and _is_store(store_path):
        known = Store.open(store_path).info.teacher
    if known is not None:
        check_teacher(texts, store.info.teacher, known)
    if not store.num_texts:
        raise UsageError(f"--texts {texts} is a store without texts; fill it with attar embed")
    if job.recipe[1].class_prompts:
        raise UsageError(
            "--method.class-prompts joins a file of sentences, and --texts is a store: put the "
            "prompts into it with attar embed --classes, or give the sentences as a file"
        )
