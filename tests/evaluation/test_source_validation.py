"""The validator: what it measures, what it chooses by, and that it leaves no trace in training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colours import CLASS_FEATURES, CLASSES, COLOURS, unlabelled

from attar.data.images import read_image
from attar.errors import AttarError, UsageError
from attar.evaluation.metrics import top_k
from attar.evaluation.models import from_student
from attar.evaluation.validation import make_validator
from attar.losses import feature_mse, kl_distillation
from attar.students.config import StudentConfig
from attar.students.student import build_student

LABELS = torch.tensor([0, 1, 2, 2, 0, 0, 1, 2])
TEACHER = torch.from_numpy(COLOURS).float()


def make_student(class_names=(), size=32):
    torch.manual_seed(1)
    config = StudentConfig(weights="none", image_size=size)
    student = build_student(
        "mobilenetv3_small_050", 3, config, class_names=class_names, logit_scale=10.0
    )
    for module in student.modules():  # untouched statistics hide a network in training mode
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return student


def features_by_hand(student, table):
    prepare = from_student(student).prepare
    pixels = torch.stack([prepare(read_image(path)) for path in table.paths])
    training = student.training
    with torch.no_grad():
        features = student.eval()(pixels / 255).features
    student.train(training)
    return features


def cosine_logits(features):
    return 10.0 * F.normalize(features, dim=1) @ torch.from_numpy(CLASS_FEATURES).T


def test_with_labels_recall_selects_and_cross_entropy_is_the_loss(table):
    student = make_student()
    result = make_validator(table, TEACHER, CLASS_FEATURES, workers=0)(student)
    features = features_by_hand(student, table)
    logits = cosine_logits(features)
    best = logits.argmax(dim=1)
    assert result["acc1"] == pytest.approx(float((best == LABELS).float().mean()))
    recall = np.mean([float((best == LABELS)[c == LABELS].float().mean()) for c in range(3)])
    assert result["selection"] == result["mean_per_class_recall"] == pytest.approx(recall)
    assert result["loss"] == pytest.approx(float(F.cross_entropy(logits, LABELS)), abs=1e-5)
    theirs = cosine_logits(TEACHER).argmax(dim=1)
    assert result["agreement"] == pytest.approx(float((best == theirs).float().mean()))
    cosine = float(F.cosine_similarity(features, TEACHER).mean())
    assert result["mean_cosine"] == pytest.approx(cosine, abs=1e-5)


def test_without_labels_the_cosine_selects(table):
    student = make_student()
    validate = make_validator(unlabelled(table), TEACHER.numpy(), CLASS_FEATURES, workers=0)
    result = validate(student)
    assert set(result) == {"loss", "agreement", "mean_cosine", "selection"}
    assert result["selection"] == result["mean_cosine"]
    logits = cosine_logits(features_by_hand(student, table))
    expected = float(kl_distillation(logits, cosine_logits(TEACHER), 1.0))
    assert result["loss"] == pytest.approx(expected, abs=1e-5)


def test_without_classes_the_cosine_selects(table):
    student = make_student()
    result = make_validator(unlabelled(table), TEACHER, None, workers=0)(student)
    assert set(result) == {"loss", "mean_cosine", "selection"}
    assert result["selection"] == result["mean_cosine"]
    expected = float(feature_mse(features_by_hand(student, table), TEACHER))
    assert result["loss"] == pytest.approx(expected, abs=1e-5)


def test_a_plain_classifier_is_measured_by_its_logits(table):
    student = make_student(class_names=CLASSES)
    result = make_validator(table, None, None, workers=0)(student)
    assert set(result) == {"loss", "acc1", "mean_per_class_recall", "selection"}
    logits = features_by_hand(student, table)
    assert result["loss"] == pytest.approx(float(F.cross_entropy(logits, LABELS)), abs=1e-5)
    with_teacher = make_validator(table, TEACHER, CLASS_FEATURES, workers=0)(student)
    theirs = top_k(cosine_logits(TEACHER), 1)[:, 0]
    assert with_teacher["agreement"] == (logits.argmax(dim=1).numpy() == theirs).mean()
    assert "mean_cosine" not in with_teacher


def test_only_labelled_images_are_scored(table):
    student = make_student()
    some = replace(table, labels=(0, 1, -1, -1, -1, -1, -1, -1))
    result = make_validator(some, None, CLASS_FEATURES, workers=0)(student)
    right = top_k(cosine_logits(features_by_hand(student, table)), 1)[:2, 0] == [0, 1]
    assert result["acc1"] == right.mean()


def test_learnt_class_features_are_asked_anew_every_time(table):
    student = make_student()
    features = torch.nn.Parameter(torch.from_numpy(CLASS_FEATURES).clone())
    validate = make_validator(table, None, lambda: features * 1.0, workers=0)
    before = validate(student)["loss"]
    with torch.no_grad():
        features.copy_(features.flip(0))
    assert validate(student)["loss"] != before


def test_validation_leaves_training_as_it_was(table):
    student = make_student().train()
    weights = {k: v.clone() for k, v in student.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    validate = make_validator(table, TEACHER, CLASS_FEATURES, batch_size=3, workers=2)
    validate(student)
    assert torch.equal(torch.rand(1), expected)
    assert student.training
    assert all(torch.equal(v, weights[k]) for k, v in student.state_dict().items())


@pytest.mark.parametrize("cache_bytes", [0, 10**9], ids=["read again", "kept"])
def test_images_are_decoded_once_where_memory_allows(table, cache_bytes):
    student = make_student()
    validate = make_validator(
        table, TEACHER, CLASS_FEATURES, batch_size=3, workers=0, cache_bytes=cache_bytes
    )
    first = validate(student)
    Path(table.paths[3]).write_bytes(b"gone bad")
    if cache_bytes:
        assert validate(student) == first
    else:
        with pytest.raises(AttarError, match=r"3\.png"):
            validate(student)


def test_a_student_of_another_size_is_shown_its_own_pixels(table):
    validate = make_validator(table, TEACHER, CLASS_FEATURES, workers=0)
    validate(make_student(size=64))
    alone = make_validator(table, TEACHER, CLASS_FEATURES, workers=0)
    assert validate(make_student(size=32)) == alone(make_student(size=32))


def test_what_cannot_be_validated_is_refused(table):
    with pytest.raises(UsageError, match="no source validation images"):
        make_validator(table.select([]), TEACHER, CLASS_FEATURES)
    with pytest.raises(UsageError, match="8 teacher features do not fit 2"):
        make_validator(table.select([0, 1]), TEACHER, CLASS_FEATURES)
    with pytest.raises(UsageError, match="nothing to measure by"):
        make_validator(table, None, None, workers=0)(make_student())
