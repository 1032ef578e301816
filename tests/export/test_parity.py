from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_students import NAMES, unit_features

from attar.errors import AttarError
from attar.export.config import ExportConfig
from attar.export.onnx import write_onnx
from attar.export.parity import check_parity, read_samples
from attar.runtime.preprocess import Preprocess
from attar.students.student import load_student


@pytest.fixture(scope="module")
def model(resnet_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(load_student(resnet_folder), path)
    return path


def judge(student, model, photos, features=None, crop_pct=None, **changes):
    spec, config = student.spec, ExportConfig(**changes)
    preprocess = Preprocess(
        image_size=spec.image_size,
        crop_pct=crop_pct or spec.crop_pct,
        interpolation=spec.interpolation,
    )
    features = unit_features(len(NAMES)) if features is None else features
    samples = read_samples([Path(photo) for photo in photos], preprocess, config.parity_images)
    return check_parity(student, model, samples, features, config)


def test_an_honest_export_holds_the_bounds(resnet_folder, model, photos):
    parity = judge(load_student(resnet_folder), model, photos, parity_images=5)
    assert parity.images == 5
    assert parity.max_abs_difference <= 1e-4
    assert parity.min_cosine >= 0.9999
    assert parity.top1_agreement == 1
    assert parity.max_pixel_difference <= 1 / 255 + 1e-6


def test_changed_weights_are_found(resnet_folder, model, photos):
    student = load_student(resnet_folder)
    with torch.no_grad():
        student.network.conv1[0].weight.add_(0.05)
    with pytest.raises(AttarError, match="an output differs by"):
        judge(student, model, photos)


def test_changed_constants_of_normalisation_are_found(resnet_folder, model, photos):
    student = load_student(resnet_folder)
    student.mean.add_(0.1)
    with pytest.raises(AttarError, match="an output differs by"):
        judge(student, model, photos)


def test_weights_that_are_not_finite_are_found(resnet_folder, model, photos):
    student = load_student(resnet_folder)
    with torch.no_grad():
        student.network.conv1[0].weight.fill_(float("nan"))
    with pytest.raises(AttarError, match="an output differs by nan"):
        judge(student, model, photos)


def test_another_best_class_is_found_and_a_tie_is_not(resnet_folder, model, photos):
    student = load_student(resnet_folder)
    with torch.no_grad():
        for parameter in student.projection().parameters():
            parameter.copy_(-parameter)
    loose = {"tolerance": 1e-4, "min_cosine": -2.0}
    with pytest.raises(AttarError, match=r"best class is the same on only 0\.0%"):
        judge(student, model, photos, **loose)
    same = np.repeat(unit_features(1), 2, axis=0)
    with pytest.raises(AttarError) as raised:
        judge(student, model, photos, features=same, **loose)
    assert "best class" not in str(raised.value)


def test_other_preprocessing_is_found(resnet_folder, model, photos):
    with pytest.raises(AttarError, match="preprocessing differs by"):
        judge(load_student(resnet_folder), model, photos, crop_pct=0.6)
