"""The task `coherence`: which model gets which numbers, on images worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from colours import (
    CLASS_FEATURES,
    CLASSES,
    COLOURS,
    ColourModel,
    colour_model,
    unlabelled,
)

from attar import metrics
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.tasks import evaluate_models
from attar.records import read_records

CONFIG = EvaluationConfig(tasks=("coherence",), workers=0, predictions=False)
SWAPPED = (0, 2, 1)


def evaluate(models, table, out, classes=CLASS_FEATURES, **options):
    options = {"dataset": "colours", "config": CONFIG, **options}
    return evaluate_models(models, table, "test_id", classes, out, **options)


def teacher_and(*models):
    return [colour_model("teacher"), *models]


def student(**changes):
    return colour_model("student", ColourModel(SWAPPED), **changes)


def features(rows=slice(None)):
    v = torch.tensor(COLOURS, dtype=torch.float32)[rows]
    return v[:, SWAPPED], v


def test_a_student_has_all_metrics_over_all_and_per_domain(table, tmp_path):
    records = evaluate(teacher_and(student(method="m")), table, tmp_path)
    assert records == read_records(tmp_path / "results.jsonl")
    found = {r.domain: r for r in records}
    assert list(found) == ["all", "photo", "sketch"]
    assert {(r.task, r.role, r.method) for r in records} == {("coherence", "student", "m")}
    assert [r.num_images for r in records] == [8, 4, 4]
    for domain, rows in (("all", slice(8)), ("photo", slice(4)), ("sketch", slice(4, 8))):
        s, v = features(rows)
        values = dict(found[domain].metrics)
        ks = (3, 5) if domain == "all" else (3,)
        expected = {f"neighborhood_overlap@{k}": metrics.neighborhood_overlap(s, v, k) for k in ks}
        expected["relative_coherence"] = metrics.relative_coherence(s, v)
        for k in (2, 3):  # there are three classes
            inversions = metrics.alignment_inversions(s, v, torch.tensor(CLASS_FEATURES), k)
            expected[f"alignment_inversions@{k}"] = inversions
        expected["squared_distance"], expected["angle"] = metrics.feature_gap(s, v)
        assert values == pytest.approx(expected, abs=1e-6)


def test_it_is_not_run_unless_asked_for(table, tmp_path):
    config = replace(EvaluationConfig(), workers=0)
    records = evaluate(teacher_and(student()), table, tmp_path, config=config)
    assert "coherence" not in {r.task for r in records}


def test_a_single_domain_has_the_numbers_of_all(table, tmp_path):
    records = evaluate(teacher_and(student()), table.select(range(4)), tmp_path)
    assert [r.domain for r in records] == ["all", "photo"]
    assert records[0].metrics == records[1].metrics


def test_images_without_labels_or_classes(table, tmp_path):
    images = unlabelled(table)
    (record,) = evaluate(teacher_and(student()), images, tmp_path, class_names=CLASSES)
    assert "alignment_inversions@3" in record.metrics
    (record,) = evaluate(teacher_and(student()), images, tmp_path, classes=None)
    assert set(record.metrics) == {
        "neighborhood_overlap@3",
        "neighborhood_overlap@5",
        "relative_coherence",
        "squared_distance",
        "angle",
    }


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"squared_distance", "angle"}),
        (3, {"squared_distance", "angle", "relative_coherence"}),
        (4, {"squared_distance", "angle", "relative_coherence", "neighborhood_overlap@3"}),
    ],
)
def test_a_k_that_needs_more_images_is_left_out(table, tmp_path, count, expected):
    images = table.select(range(count))
    record = evaluate(teacher_and(student()), images, tmp_path)[0]
    assert {m for m in record.metrics if "inversions" not in m} == expected


def test_what_shares_no_space_has_neighbourhoods_alone(table, tmp_path):
    apart = {"in_teacher_space": False, "class_features": CLASS_FEATURES[:, SWAPPED]}
    other = replace(student(), role="other", **apart)
    wide = colour_model(
        "wide", ColourModel((0, 1, 2, 0)), dim=4, class_features=np.eye(3, 4, dtype=np.float32),
        in_teacher_space=False,
    )  # fmt: skip
    foreign = replace(student(teacher_identity="two"), role="foreign")
    models = [colour_model("teacher", teacher_identity="one"), other, wide, foreign]
    records = evaluate(models, table, tmp_path, teacher_identity="one")
    assert {r.role for r in records} == {"other", "wide", "foreign"}
    for record in records:
        assert {m.partition("@")[0] for m in record.metrics} == {"neighborhood_overlap"}
    overall = {r.role: r.metrics["neighborhood_overlap@3"] for r in records if r.domain == "all"}
    # Colours with two channels exchanged lie as they did among each other.
    assert overall["other"] == overall["foreign"] == 1


def test_a_plain_classifier_has_no_coherence(table, tmp_path):
    classifier = colour_model("baseline", head="classes", class_names=CLASSES)
    records = evaluate(teacher_and(classifier, student()), table, tmp_path)
    assert {r.role for r in records} == {"student"}


def test_without_a_teacher_there_is_nothing_to_measure(table, tmp_path):
    with pytest.raises(UsageError, match="a teacher to compare with"):
        evaluate([student()], table, tmp_path)


def test_class_features_of_another_teacher_are_not_used(table, tmp_path):
    models = [colour_model("teacher", teacher_identity="one"), student(teacher_identity="one")]
    records = evaluate(models, table, tmp_path, teacher_identity="two")
    assert not any("inversions" in metric for metric in records[0].metrics)
    assert "relative_coherence" in records[0].metrics
