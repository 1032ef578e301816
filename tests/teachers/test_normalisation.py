"""A teacher that is shown images with ImageNet's constants, as the official code of VL2V does."""

import pickle
from pathlib import Path

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from tests.doubles import random_image
from torch import nn

from attar.errors import UsageError
from attar.store.layout import check_teacher
from attar.teachers.base import Teacher, TeacherInfo, Towers
from attar.teachers.loading import FrozenTeacher
from attar.teachers.normalisation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    as_known,
    normalisation_of,
    with_imagenet_normalisation,
)

MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)


class Pixels(nn.Module):
    """An image tower whose features are its first pixels."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)[:, :8]


def make_teacher(prepare=None) -> FrozenTeacher:
    config = PreprocessCfg(size=(16, 16), mean=MEAN, std=STD)
    return FrozenTeacher(
        info=TeacherInfo(name="pixels", identity="a", dim=8, logit_scale=10.0),
        prepare=prepare or image_transform_v2(config, is_train=False),
        towers=Towers(image=Pixels(), text=nn.Identity(), tokenizer=list),
        count_cut=lambda texts: 0,
        device=torch.device("cpu"),
    )


def test_pixels_are_normalised_with_imagenets_constants() -> None:
    teacher = make_teacher()
    changed = with_imagenet_normalisation(teacher)
    assert isinstance(changed, Teacher)
    image = random_image(1)
    config = PreprocessCfg(size=(16, 16), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    expected = image_transform_v2(config, is_train=False)(image)
    found = pickle.loads(pickle.dumps(changed.prepare))(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - teacher.prepare(image)).abs().max() > 0.1
    features = changed.encode_images(found[None])
    torch.testing.assert_close(features, expected.flatten()[None, :8], rtol=0, atol=1e-5)


def test_it_is_another_teacher() -> None:
    teacher = make_teacher()
    changed = with_imagenet_normalisation(teacher)
    assert changed.info.identity != teacher.info.identity
    assert (changed.info.dim, changed.info.logit_scale) == (8, 10.0)
    assert normalisation_of(teacher) == (MEAN, STD)
    assert normalisation_of(changed) == (IMAGENET_MEAN, IMAGENET_STD)


def test_a_teacher_that_does_not_say_is_refused() -> None:
    teacher = make_teacher(prepare=lambda image: torch.zeros(3, 16, 16))
    with pytest.raises(UsageError, match="'pixels' does not say how it normalises"):
        with_imagenet_normalisation(teacher)


def test_a_teacher_is_recognised_by_either_normalisation() -> None:
    teacher = make_teacher()
    changed = with_imagenet_normalisation(teacher)
    assert as_known(teacher, teacher.info.identity) is teacher
    assert as_known(teacher, changed.info.identity).info == changed.info
    assert as_known(teacher, "somebody else") is teacher
    silent = make_teacher(prepare=lambda image: torch.zeros(3, 16, 16))
    assert as_known(silent, "somebody else") is silent


def test_a_store_of_the_teacher_takes_none_of_its_answers() -> None:
    teacher = make_teacher()
    changed = with_imagenet_normalisation(teacher)
    with pytest.raises(UsageError, match="same name, other weights or preprocessing"):
        check_teacher(Path("store"), teacher.info, changed.info)
