"""Tasks and their driver on features whose every result can be worked out by hand."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from colours import (
    CLASS_FEATURES,
    CLASSES,
    COLOURS,
    ColourModel,
    colour_model,
    unlabelled,
)

from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.evidence import is_same_teacher
from attar.evaluation.metrics import ece, softmax, unit
from attar.evaluation.tasks import evaluate_models, replace_records
from attar.records import Record, append_records, read_records

CONFIG = EvaluationConfig(workers=0)
SWAPPED = (0, 2, 1)
"""A student that takes green for blue."""


def evaluate(models, table, out, split="test_id", classes=CLASS_FEATURES, **options):
    options = {"dataset": "colours", "config": CONFIG, **options}
    return evaluate_models(models, table, split, classes, out, **options)


def teacher_and_student():
    return [colour_model("teacher"), colour_model("student", ColourModel(SWAPPED), method="m")]


def by_domain(records, role, task):
    return {r.domain: r for r in records if r.role == role and r.task == task}


def test_zero_shot_over_all_and_per_domain(table, tmp_path):
    records = evaluate([colour_model("teacher")], table, tmp_path)
    found = by_domain(records, "teacher", "zeroshot_classification")
    assert list(found) == ["all", "photo", "sketch"]
    assert [r.num_images for r in found.values()] == [8, 4, 4]
    assert [r.metrics["acc1"] for r in found.values()] == [6 / 8, 1.0, 2 / 4]
    recalls = [np.mean([2 / 3, 1, 2 / 3]), 1.0, np.mean([1 / 2, 1, 0])]
    assert [r.metrics["mean_per_class_recall"] for r in found.values()] == pytest.approx(recalls)
    assert {r.metrics["acc5"] for r in found.values()} == {1.0}
    confidences = softmax(5.0 * unit(COLOURS)).max(axis=1)
    correct = np.array([1, 1, 1, 1, 0, 1, 1, 0])
    assert found["all"].metrics["ece"] == pytest.approx(ece(confidences, correct), abs=1e-6)
    assert set(found["all"].metrics) == {"acc1", "acc5", "mean_per_class_recall", "ece"}
    assert found["all"].extra == {"num_classes": 3, "logit_scale": 5.0}


def test_fidelity_compares_with_the_teacher(table, tmp_path):
    records = evaluate(teacher_and_student(), table, tmp_path)
    assert by_domain(records, "teacher", "fidelity") == {}
    found = by_domain(records, "student", "fidelity")
    # Only what looks red gets the same class from both.
    assert [r.metrics["agreement"] for r in found.values()] == [3 / 8, 1 / 4, 2 / 4]
    cosines = (unit(COLOURS) * unit(COLOURS[:, SWAPPED])).sum(axis=1)
    expected = [cosines.mean(), cosines[:4].mean(), cosines[4:].mean()]
    assert [r.metrics["mean_cosine"] for r in found.values()] == pytest.approx(expected, abs=1e-6)
    assert {r.method for r in found.values()} == {"m"}


def test_unlabelled_images_give_fidelity_alone(table, tmp_path):
    images = unlabelled(table)
    records = evaluate(teacher_and_student(), images, tmp_path, class_names=CLASSES)
    assert [(r.role, r.task, r.domain) for r in records] == [("student", "fidelity", "all")]
    assert records[0].metrics["agreement"] == 3 / 8
    rows = pq.read_table(tmp_path / "predictions" / "student-test_id.parquet").to_pylist()
    assert [row["prediction"] for row in rows[:3]] == ["red", "blue", "green"]
    assert {row["label"] for row in rows} == {row["correct"] for row in rows} == {None}


def test_without_a_class_list_only_the_cosine_is_left(table, tmp_path, caplog):
    records = evaluate(teacher_and_student(), unlabelled(table), tmp_path, classes=None)
    assert [set(r.metrics) for r in records] == [{"mean_cosine"}]
    assert "--classes" in caplog.text
    assert not (tmp_path / "predictions").exists()


def test_nothing_to_measure_is_wrong_use(table, tmp_path):
    with pytest.raises(UsageError, match="labels and class features, or a teacher"):
        evaluate([colour_model("student")], unlabelled(table), tmp_path, classes=None)


def test_one_domain_is_shown_beside_all(table, tmp_path):
    sketches = table.select([4, 5, 6, 7])
    records = evaluate([colour_model("teacher")], sketches, tmp_path, split="held_out")
    assert [(r.domain, r.split, r.metrics["acc1"]) for r in records] == [
        ("all", "held_out", 0.5),
        ("sketch", "held_out", 0.5),
    ]


def test_only_labelled_images_are_scored_but_all_are_compared(table, tmp_path):
    some = replace(table, labels=(0, 1, -1, -1, -1, -1, -1, -1))
    records = evaluate(teacher_and_student(), some, tmp_path)
    scored = by_domain(records, "teacher", "zeroshot_classification")
    assert {d: r.num_images for d, r in scored.items()} == {"all": 2, "photo": 2}
    assert scored["all"].metrics["acc1"] == 1.0
    compared = by_domain(records, "student", "fidelity")
    assert {d: r.num_images for d, r in compared.items()} == {"all": 8, "photo": 4, "sketch": 4}


def test_predictions_file_holds_every_image(table, tmp_path):
    some = replace(table, labels=(*table.labels[:7], -1), domains=(*table.domains[:7], -1))
    evaluate([colour_model("erm baseline/1")], some, tmp_path, split="test-ood")
    file = pq.read_table(tmp_path / "predictions" / "erm_baseline_1-test_ood.parquet")
    assert file.column_names == [
        "name", "path", "domain", "label", "prediction", "confidence", "correct", "top5",
        "top5_confidence",
    ]  # fmt: skip
    rows = file.to_pylist()
    assert [row["name"] for row in rows] == list(table.names)
    assert [row["path"] for row in rows] == list(table.paths)
    assert [row["correct"] for row in rows] == [True] * 4 + [False, True, True, None]
    assert rows[7]["label"] is rows[7]["domain"] is None
    wrong = rows[4]
    assert (wrong["domain"], wrong["label"], wrong["prediction"]) == ("sketch", "red", "green")
    expected = softmax(np.array([[0.0, 5.0, 0.0]]))[0]
    assert wrong["top5"] == ["green", "red", "blue"]
    assert wrong["top5_confidence"] == pytest.approx(expected[[1, 0, 2]], abs=1e-6)
    assert wrong["confidence"] == wrong["top5_confidence"][0]


def test_records_are_replaced_and_not_doubled(table, tmp_path):
    evaluate(teacher_and_student(), table, tmp_path)
    evaluate([colour_model("teacher")], table, tmp_path, dataset="other")
    evaluate([colour_model("teacher")], table, tmp_path, split="val")
    before = read_records(tmp_path / "results.jsonl")
    # Again with fewer domains: the old lines of those that are gone go too.
    newer = evaluate(teacher_and_student(), table.select([0, 1, 2]), tmp_path)
    after = read_records(tmp_path / "results.jsonl")
    kept = [r for r in before if r.dataset == "other" or r.split == "val"]
    assert len(kept) == 6
    assert after == kept + newer
    assert {r.domain for r in newer} == {"all", "photo"}


def test_replacing_with_nothing_leaves_the_file_alone(tmp_path):
    record = Record(dataset="d", model="m", pretrained="p", task="t", metrics={"x": 1.0})
    append_records(tmp_path / "results.jsonl", [record])
    replace_records(tmp_path / "results.jsonl", [])
    assert read_records(tmp_path / "results.jsonl") == [record]


def classifier(names, role="baseline", scale=1.0):
    """Return a plain classifier whose logit of each class is how much of its colour there is."""
    channels = [CLASSES.index(n) if n in CLASSES else 0 for n in names]
    network = ColourModel(channels)
    return colour_model(
        role, network, head="classes", dim=len(names), class_names=tuple(names), logit_scale=scale
    )


def test_a_plain_classifier_brings_its_own_logits_in_any_order(table, tmp_path):
    models = [colour_model("teacher"), classifier(("blue", "red", "green"))]
    records = evaluate(models, table, tmp_path)
    scored = by_domain(records, "baseline", "zeroshot_classification")
    assert scored["all"].metrics["acc1"] == 6 / 8
    confidences = softmax(COLOURS).max(axis=1)
    correct = np.array([1, 1, 1, 1, 0, 1, 1, 0])
    assert scored["all"].metrics["ece"] == pytest.approx(ece(confidences, correct), abs=1e-6)
    compared = by_domain(records, "baseline", "fidelity")
    # Its three logits are no features, though their number happens to be the teacher's dimension.
    assert compared["all"].metrics == {"agreement": 1.0}


def test_a_classifier_of_other_classes_is_left_out_with_the_reason(table, tmp_path, caplog):
    evaluate([classifier(("red", "green", "blue"))], table, tmp_path)
    stale = tmp_path / "predictions" / "baseline-test_id.parquet"
    assert stale.exists()
    models = [colour_model("teacher"), classifier(("red", "green", "mauve"))]
    with caplog.at_level(logging.WARNING):
        records = evaluate(models, table, tmp_path)
    assert {r.role for r in records} == {"teacher"}
    assert "baseline (colour) is a plain classifier of 3 classes" in caplog.text
    assert not stale.exists()


def test_a_model_with_a_space_of_its_own_is_scored_by_its_own_class_features(table, tmp_path):
    other = colour_model(
        "another",
        ColourModel(SWAPPED),
        class_features=CLASS_FEATURES[:, SWAPPED],
        in_teacher_space=False,
    )
    records = evaluate([colour_model("teacher"), other], table, tmp_path)
    assert by_domain(records, "another", "zeroshot_classification")["all"].metrics["acc1"] == 6 / 8
    assert by_domain(records, "another", "fidelity")["all"].metrics == {"agreement": 1.0}


def test_records_keep_the_order_of_the_models(table, tmp_path):
    student, teacher = colour_model("student"), colour_model("teacher")
    records = evaluate([student, teacher], table, tmp_path)
    assert list(dict.fromkeys(r.role for r in records)) == ["student", "teacher"]
    assert by_domain(records, "student", "fidelity")["all"].metrics["agreement"] == 1.0


def test_tasks_can_be_chosen(table, tmp_path):
    config = replace(CONFIG, tasks=("fidelity",), predictions=False)
    records = evaluate(teacher_and_student(), table, tmp_path, config=config)
    assert {r.task for r in records} == {"fidelity"}
    assert not (tmp_path / "predictions").exists()
    with pytest.raises(UsageError, match=r"unknown evaluation task 'zero-shot': did you mean"):
        evaluate([], table, tmp_path, config=replace(CONFIG, tasks=("zero-shot",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": []}, "'test_id' of colours holds no images"),
        ({"classes": CLASS_FEATURES[:2]}, "2 class features do not fit the 3 classes"),
        ({"classes": np.eye(3, 4)}, r"\[3, 3\] but was given \[3, 4\]"),
        ({"class_names": ("cat", "dog", "cow")}, "labelled with the 3 classes"),
        ({"roles": ("student", "student")}, "two models have the role 'student'"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_computed(table, tmp_path, change, message):
    network = ColourModel()
    models = [colour_model(role, network) for role in change.pop("roles", ("student",))]
    images = table.select(change.pop("table", range(8)))
    with pytest.raises(UsageError, match=message):
        evaluate(models, images, tmp_path, **change)
    assert network.images_seen == 0
    assert not (tmp_path / "results.jsonl").exists()


def test_class_features_of_another_teacher_classify_nothing(table, tmp_path, caplog):
    models = [
        colour_model("teacher", teacher_identity="one"),
        colour_model("student", teacher_identity="one"),
        colour_model("baseline", teacher_identity="two"),
        # Its width would not even fit.
        colour_model("wide", teacher_identity="two", dim=5),
        colour_model("unknown"),
    ]
    records = evaluate(models, table, tmp_path, teacher_identity="one")
    for task in ("zeroshot_classification", "fidelity"):
        assert {r.role for r in records if r.task == task} - {"teacher"} == {"student", "unknown"}
    for role in ("baseline", "wide"):
        assert f"{role} (colour) classifies nothing: it lives in the space of teacher two" in (
            caplog.text
        )


def test_own_class_features_are_of_any_teacher(table, tmp_path):
    model = colour_model("other", teacher_identity="two", class_features=CLASS_FEATURES)
    records = evaluate([model], table, tmp_path, teacher_identity="one")
    assert {r.role for r in records} == {"other"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("a", "a", True), ("a", "b", False), ("", "b", True), ("a", "imported:b", True)],
)
def test_an_unknown_teacher_may_be_any(one, other, same):
    assert is_same_teacher(one, other) is is_same_teacher(other, one) is same
