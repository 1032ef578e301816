"""What a run will cost, said before it begins."""

from dataclasses import dataclass
from pathlib import Path

import torch

from attar.methods.base import ClassFeatures, FrozenClassFeatures
from attar.stages import class_space, corpus, domain_texts, further_texts, label_weight
from attar.stages.job import Job
from attar.stages.learning import plan_phases
from attar.store.estimate import EmbedEstimate, estimate_embed, seconds_per_image
from attar.store.store import Store
from attar.training.estimate import measure_step
from attar.training.feed import Feed

_WEIGHT_COPIES = 9
"""The student's weights on disk at most: last, best and initial checkpoint, two moments of the
optimiser, their replacements while they are written, two references and the student itself."""


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


def estimate(job: Job, store_path: Path) -> Estimate:
    """Time the teacher and one training step on this machine, and count what is left to do."""
    missing = EmbedEstimate(missing_images=0, missing_texts=0, bytes=0)
    asking = 0.0
    if job.teacher is not None:
        store = Store.open(store_path) if (store_path / "store.json").is_file() else None
        flat = [*(text for of_class in job.texts for text in of_class), *job.captions]
        embed = job.config.embed
        missing = estimate_embed(job.teacher.info, job.images, store, embed, flat)
        if missing.missing_images:
            asking = missing.seconds(seconds_per_image(job.teacher, embed))
    sentences = further_texts.count_missing(job, store_path)
    steps, training = _training_seconds(job)
    weights = sum(p.numel() * p.element_size() for p in job.student.parameters())
    return Estimate(
        teacher_images=missing.missing_images,
        teacher_texts=missing.missing_texts + sentences,
        embedding_seconds=asking,
        training_steps=steps,
        training_seconds=training,
        disk_bytes=missing.bytes + _WEIGHT_COPIES * weights,
    )


def _training_seconds(job: Job) -> tuple[int, float]:
    training = job.config.training
    size = job.student.spec.image_size
    streams = corpus.stand_in(job) | domain_texts.stand_in(job) | label_weight.stand_in(job)
    feed = Feed(job.source, None, training, size, streams=streams)
    phases = plan_phases(job, feed)
    provider: ClassFeatures | None = None
    if class_space.learns(job):
        provider = class_space.provider(job, None)
    elif job.texts and job.teacher_dim is not None:
        classes = len(job.source.train.class_names)
        provider = FrozenClassFeatures(torch.randn(classes, job.teacher_dim))
    width = job.teacher_dim or job.student.spec.dim
    seconds = measure_step(job.student, phases, feed, provider, training, width=width).step
    steps = sum(phase.steps for phase in phases)
    return steps, steps * seconds


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
