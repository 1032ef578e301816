"""From what the teacher said to a trained student."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from attar.data.splits import SourceSplits
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.models import features_from_store
from attar.evaluation.validation import Validator, make_validator
from attar.methods.base import ClassFeatures, Method, Phase, Sizes
from attar.run import RunConfig, RunFolder
from attar.stages import (
    class_space,
    corpus,
    domain_texts,
    label_weight,
    several_labels,
    white_box,
)
from attar.stages.embedding import Knowledge
from attar.stages.job import Job
from attar.students.start import take_weights
from attar.students.student import Student, build_student
from attar.teachers.base import Teacher, TeacherInfo
from attar.training.feed import Feed
from attar.training.loop import train
from attar.training.seeds import derive_seed


def build(
    config: RunConfig,
    method: Method,
    teacher: TeacherInfo | None,
    class_names: Sequence[str],
    loaded: Teacher | None = None,
) -> Student:
    """Build the student with its starting weights, reproducibly from the training seed.

    `class_names` are those it is trained on: what a plain classifier can say. `loaded` is the
    teacher itself, which `--student teacher` starts from.
    """
    torch.manual_seed(config.training.seed)
    if white_box.is_teacher(config):
        student = white_box.build(config, method, loaded, class_names)
    elif method.head == "classes":
        student = build_student(
            config.student,
            len(class_names),
            config.student_config,
            class_names=class_names,
            logit_scale=1.0,
        )
    elif teacher is None:
        raise UsageError(f"method {method.name} needs a teacher: give --teacher or --store")
    else:
        student = build_student(
            config.student,
            teacher.dim,
            config.student_config,
            teacher=teacher.name,
            teacher_identity=teacher.identity,
            logit_scale=teacher.logit_scale,
        )
    if config.start_from is not None:
        take_weights(student, config.start_from)
    return student


def learn(job: Job, knowledge: Knowledge | None, run: RunFolder) -> Path:
    """Train the job's student on the source splits and return its folder.

    Selection sees source validation images alone.
    """
    method, training = job.recipe[0], job.config.training
    uses_teacher = knowledge is not None and "teacher" in method.needs
    provider = class_space.provider(job, knowledge)
    feed = Feed(
        job.source,
        knowledge.store if knowledge is not None and uses_teacher else None,
        training,
        job.student.spec.image_size,
        online=ask_online(job.teacher) if job.teacher is not None and uses_teacher else None,
        streams=corpus.streams(job, knowledge, run)
        | domain_texts.streams(job, knowledge)
        | label_weight.streams(job, knowledge, provider),
        captions="captions" in job.needs,
    )
    phases = plan_phases(job, feed)
    validate = None
    if len(job.source.val) and method.gives_several_labels:
        validate = several_labels.validation(job.source, phases, provider, job.config.evaluation)
    elif len(job.source.val):
        validate = make_validation(job.source, knowledge, provider, job.config)
    folder = train(job.student, phases, feed, provider, training, run.path, validate=validate)
    if provider is not None:
        class_space.save_learnt(provider, job, run, knowledge)
    return folder


def ask_online(teacher: Teacher) -> Callable[[Tensor], Tensor]:
    """Return what asks a teacher about the student's own views: uint8 [B, 3, H, W] to [B, D]."""

    def ask(images: Tensor) -> Tensor:
        pixels = torch.stack([teacher.prepare(to_pil_image(image)) for image in images])
        return F.normalize(teacher.encode_images(pixels), dim=-1).cpu()

    return ask


def plan_phases(job: Job, feed: Feed) -> tuple[Phase, ...]:
    """Return the method's phases for the feed's budget, the same whatever was drawn before."""
    method, options = job.recipe
    torch.manual_seed(derive_seed(job.config.training.seed, "objective"))
    sizes = sizes_of(job.student, job.source.train, job.teacher_dim)
    phases = method.phases(options, feed.total_steps(), sizes)
    class_space.go_on_from(phases, job.config.start_from)
    return phases


def make_validation(
    source: SourceSplits,
    knowledge: Knowledge | None,
    class_features: ClassFeatures | None,
    config: RunConfig,
) -> Validator:
    """Return the callable that measures a student on source validation images."""
    features = None if knowledge is None else features_from_store(knowledge.store, source.val)
    return make_validator(
        source.val,
        features,
        class_features,
        batch_size=config.evaluation.batch_size,
        workers=config.evaluation.workers,
    )


def sizes_of(student: Student, train_images: ImageTable, teacher_dim: int | None = None) -> Sizes:
    """Return what objectives may need to know when they are built."""
    size = student.spec.image_size
    was_training = student.training
    student.eval()
    with torch.no_grad():
        outputs = student(torch.zeros(1, 3, size, size), trunk=True, layers=True)
    student.train(was_training)
    return Sizes(
        dim=student.spec.dim,
        trunk_width=outputs.trunk.shape[1],
        num_classes=len(train_images.class_names),
        num_domains=len(train_images.domain_names),
        teacher_dim=teacher_dim,
        layer_widths=tuple(layer.shape[1] for layer in outputs.layers),
        logit_scale=student.spec.logit_scale,
    )
