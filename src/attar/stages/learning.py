"""From what the teacher said to a trained student."""

from pathlib import Path
from typing import Any

import torch

from attar.data.splits import SourceSplits
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.models import features_from_store
from attar.evaluation.validation import Validator, make_validator
from attar.methods.base import FrozenClassFeatures, Method, Phase, Sizes
from attar.run import RunConfig, RunFolder, with_method_defaults
from attar.stages.embedding import Knowledge
from attar.students.student import Student, build_student
from attar.teachers.base import TeacherInfo
from attar.training.feed import Feed
from attar.training.loop import train


def build(
    config: RunConfig, method: Method, teacher: TeacherInfo | None, images: ImageTable
) -> Student:
    """Build the student with its starting weights, reproducibly from the training seed."""
    torch.manual_seed(config.training.seed)
    if method.head == "classes":
        return build_student(
            config.student,
            len(images.class_names),
            config.student_config,
            class_names=images.class_names,
            logit_scale=1.0,
        )
    if teacher is None:
        raise UsageError(f"method {method.name} needs a teacher: give --teacher or --store")
    return build_student(
        config.student,
        teacher.dim,
        config.student_config,
        teacher=teacher.name,
        logit_scale=teacher.logit_scale,
    )


def learn(
    student: Student,
    recipe: tuple[Method, Any],
    source: SourceSplits,
    knowledge: Knowledge | None,
    config: RunConfig,
    run: RunFolder,
) -> Path:
    """Train the student on the source splits and return its folder.

    Selection and early stopping see source validation images alone.
    """
    training = with_method_defaults(config.training, recipe[0].training)
    store = None if knowledge is None else knowledge.store
    feed = Feed(source, store, training, student.spec.image_size)
    phases = plan_phases(recipe, feed, student, source.train)
    provider = None
    if knowledge is not None and knowledge.class_features is not None:
        provider = FrozenClassFeatures(knowledge.class_features)
    return train(
        student,
        phases,
        feed,
        provider,
        training,
        run.path,
        validate=make_validation(source, knowledge, config) if len(source.val) else None,
    )


def plan_phases(
    recipe: tuple[Method, Any], feed: Feed, student: Student, train_images: ImageTable
) -> tuple[Phase, ...]:
    """Return the method's phases for the feed's budget."""
    method, options = recipe
    return method.phases(options, feed.total_steps(), sizes_of(student, train_images))


def make_validation(
    source: SourceSplits, knowledge: Knowledge | None, config: RunConfig
) -> Validator:
    """Return the callable that measures a student on source validation images."""
    features = None if knowledge is None else features_from_store(knowledge.store, source.val)
    return make_validator(
        source.val,
        features,
        None if knowledge is None else knowledge.class_features,
        batch_size=config.evaluation.batch_size,
        workers=config.evaluation.workers,
    )


def sizes_of(student: Student, train_images: ImageTable) -> Sizes:
    """Return what objectives may need to know when they are built."""
    size = student.spec.image_size
    was_training = student.training
    student.eval()
    with torch.no_grad():
        trunk = student(torch.zeros(1, 3, size, size), trunk=True).trunk
    student.train(was_training)
    return Sizes(
        dim=student.spec.dim,
        trunk_width=trunk.shape[1],
        num_classes=len(train_images.class_names),
        num_domains=len(train_images.domain_names),
    )
