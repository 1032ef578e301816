"""What a run will cost, said before it begins."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attar.data.splits import SourceSplits
from attar.data.table import ImageTable
from attar.files import check_writable
from attar.methods.base import Method
from attar.run import RunConfig, RunFolder
from attar.store.estimate import estimate_embed, seconds_per_image
from attar.store.store import Store
from attar.teachers.registry import load_teacher

log = logging.getLogger(__name__)

_CHECKPOINT_COPIES = 6
"""Student copies on disk at once: last, best, optimiser moments, references and the student."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of what is still to do."""

    teacher_images: int
    teacher_texts: int
    embedding_seconds: float
    training_steps: int
    training_seconds: float
    disk_bytes: int

    def __str__(self) -> str:
        """Return the estimate as one line for a person."""
        total = self.embedding_seconds + self.training_seconds
        return (
            f"about {_duration(total)}: {self.teacher_images:,} image and {self.teacher_texts:,} "
            f"text queries to the teacher ({_duration(self.embedding_seconds)}), "
            f"{self.training_steps:,} training steps ({_duration(self.training_seconds)}), "
            f"{self.disk_bytes / 1e6:,.0f} MB of disk"
        )


@dataclass(frozen=True, kw_only=True)
class TeacherWork:
    """What the teacher still has to answer."""

    images: int
    texts: int
    seconds: float
    bytes: int


def plan_teacher(
    config: RunConfig, images: ImageTable, texts: Sequence[Sequence[str]], run: RunFolder
) -> TeacherWork:
    """Count the teacher's missing answers and time it on a few images of noise."""
    path = config.store or run.store
    if config.teacher is None:
        return TeacherWork(images=0, texts=0, seconds=0.0, bytes=0)
    teacher = load_teacher(config.teacher)
    store = Store.open(path) if (path / "store.json").is_file() else None
    flat = [text for of_class in texts for text in of_class]
    work = estimate_embed(teacher.info, images, store, config.embed, flat)
    seconds = work.seconds(seconds_per_image(teacher, config.embed)) if work.missing_images else 0.0
    return TeacherWork(
        images=work.missing_images, texts=work.missing_texts, seconds=seconds, bytes=work.bytes
    )


def check_disk(config: RunConfig, source: SourceSplits, run: RunFolder) -> None:
    """Refuse a disk that cannot hold the run."""
    images = len(source.train) + len(source.val)
    check_writable(run.path, needed_bytes=_CHECKPOINT_COPIES * 20_000_000 + images * 2_000)


def estimate(
    config: RunConfig,
    recipe: tuple[Method, Any],
    images: ImageTable,
    source: SourceSplits,
    texts: Sequence[Sequence[str]],
    run: RunFolder,
) -> Estimate:
    """Time the teacher and one training step on this machine, and count what is left to do."""
    method, options = recipe
    needs_teacher = "teacher" in method.needs or config.teacher is not None
    work = plan_teacher(config, images, texts, run) if needs_teacher else None
    steps, seconds = plan_training(config, method, options, source)
    done = TeacherWork(images=0, texts=0, seconds=0.0, bytes=0) if work is None else work
    return Estimate(
        teacher_images=done.images,
        teacher_texts=done.texts,
        embedding_seconds=done.seconds,
        training_steps=steps,
        training_seconds=seconds,
        disk_bytes=done.bytes + _CHECKPOINT_COPIES * 20_000_000,
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
