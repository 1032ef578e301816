"""`--student teacher`: the student is the teacher's own image encoder, as a timm network.

It starts with the teacher's weights and sees images through the teacher's preprocessing, so at the
teacher's image size its features are the teacher's. This is proved each time, on two images, before
anything else is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.device import full_fp32
from attar.errors import UsageError
from attar.methods.base import Method
from attar.run import RunConfig
from attar.students.student import Student, StudentSpec, build_student
from attar.students.weights import classifier_names
from attar.teachers.base import Teacher
from attar.teachers.image_encoder import ImageEncoder, find_image_encoder

TEACHER = "teacher"
"""The name of the student that is the teacher's image encoder."""

_TOLERANCE = 1e-3
"""Greatest difference in a unit feature: CPU and GPU round differently."""


def is_teacher(config: RunConfig) -> bool:
    """Say whether the student is the teacher's own image encoder."""
    return config.student == TEACHER


def check(config: RunConfig, method: Method) -> None:
    """Refuse what contradicts the student that was asked for; load nothing.

    Raises:
        UsageError: a white-box method with another student, or the teacher's encoder without the
            teacher or with weights or a projection of its own.
    """
    if method.white_box and not is_teacher(config) and config.start_from is None:
        raise UsageError(
            f"method {method.name} trains the teacher's own image encoder, not "
            f"{config.student!r}: give --student {TEACHER}, or --start-from a student of the same "
            "teacher"
        )
    if not is_teacher(config):
        return
    chosen = config.student_config
    if config.teacher is None:
        raise UsageError(
            f"--student {TEACHER} is the teacher's own network, and a store holds only what it "
            "said: give --teacher"
        )
    if chosen.projector == "mlp":
        raise UsageError(
            f"--student.projector mlp: --student {TEACHER} ends in the teacher's own projection; "
            "give --student.projector linear"
        )
    # Leaving it out is no way where the method, or the base of a grid, has set the value.
    for name, value, default, way_out in (
        ("weights", chosen.weights, "auto", "give --student.weights auto"),
        ("projection", chosen.projection, "random", "give --student.projection random"),
        ("gelu", chosen.gelu, False, "leave --student.gelu out"),
    ):
        if value not in (None, default):
            raise UsageError(
                f"--student.{name} {value}: --student {TEACHER} is the teacher's own network with "
                f"its weights; {way_out}"
            )


def build(
    config: RunConfig, method: Method, teacher: Teacher | None, class_names: Sequence[str]
) -> Student:
    """Return the student with the teacher's weights, or a plain classifier on its backbone.

    Raises:
        UsageError: the teacher shows no image tower, or one that is no timm network, or one that
            cannot take the image size.
    """
    if teacher is None:
        raise UsageError(f"--student {TEACHER} needs --teacher")
    encoder = find_image_encoder(teacher)
    student = _take_weights(config, encoder, teacher, encoder.image_size)
    _prove(student, teacher, encoder)
    size = config.student_config.image_size
    if size not in (None, encoder.image_size):
        student = _take_weights(config, encoder, teacher, size)
    if method.head == "classes":
        return _as_classifier(student, config, class_names)
    return student


def _take_weights(
    config: RunConfig, encoder: ImageEncoder, teacher: Teacher, size: int | None
) -> Student:
    chosen, info = config.student_config, teacher.info
    student = build_student(
        encoder.architecture,
        info.dim,
        replace(chosen, weights="none", image_size=size),
        teacher=info.name,
        teacher_identity=info.identity,
        logit_scale=info.logit_scale,
    )
    weights = encoder.weights(student.network)
    _check_bias(weights, classifier_names(student.network)[0], config, info.name)
    try:
        student.network.load_state_dict(weights)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UsageError(
            f"the image encoder of {info.name} does not fit timm's {encoder.architecture} at "
            f"{size} px ({reason}); give another --student.image-size or another teacher"
        ) from error
    student.clear_projection_bias()
    return Student(student.network, _spec(student, config, encoder, info.name))


def _check_bias(
    weights: Mapping[str, Tensor], projection: str, config: RunConfig, teacher: str
) -> None:
    """Refuse to leave out a bias that the teacher's features have."""
    bias = weights.get(f"{projection}.bias")
    if config.student_config.projection_bias is False and bias is not None and bias.any():
        raise UsageError(
            f"--student.projection-bias False: the image encoder of {teacher} ends in a projection "
            f"with a bias, without which --student {TEACHER} gives other features; add "
            "--student.projection-bias"
        )


def _spec(student: Student, config: RunConfig, encoder: ImageEncoder, name: str) -> StudentSpec:
    crop = config.student_config.crop_pct
    return replace(
        student.spec,
        mean=encoder.mean,
        std=encoder.std,
        interpolation=encoder.interpolation,
        crop_pct=encoder.crop_pct if crop is None else crop,
        weights=f"the image encoder of {name}",
    )


def _prove(student: Student, teacher: Teacher, encoder: ImageEncoder) -> None:
    """Compare the student's features with the teacher's on two images of its own size."""
    size = encoder.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    pixels = (images - student.mean) / student.std
    with torch.no_grad(), full_fp32():
        own = F.normalize(student.eval()(images).features, dim=-1)
        theirs = F.normalize(teacher.encode_images(pixels).cpu(), dim=-1)
    student.train()
    difference = (own - theirs).abs().max().item()
    if not difference <= _TOLERANCE:
        raise UsageError(
            f"timm's {encoder.architecture} with the weights of {teacher.info.name} gives other "
            f"features (by up to {difference:.2g}): the student cannot start from this teacher"
        )


def _as_classifier(student: Student, config: RunConfig, class_names: Sequence[str]) -> Student:
    """Put a fresh classifier of the given classes in the place of the projection."""
    spec = student.spec
    torch.manual_seed(config.training.seed)
    classifier = build_student(
        spec.name,
        len(class_names),
        replace(config.student_config, weights="none", image_size=spec.image_size),
        class_names=class_names,
        logit_scale=1.0,
    )
    prefixes = tuple(f"{name}." for name in classifier_names(student.network))
    state = student.network.state_dict()
    backbone = {name: value for name, value in state.items() if not name.startswith(prefixes)}
    classifier.network.load_state_dict(backbone, strict=False)
    seen = ("mean", "std", "interpolation", "crop_pct", "weights")
    kept = {name: getattr(spec, name) for name in seen}
    return Student(classifier.network, replace(classifier.spec, **kept))
