from dataclasses import replace

import numpy as np
import pytest

from attar.errors import UsageError
from attar.evaluation.few_labels import draw_labels
from attar.evaluation.gate import (
    GateImages,
    decide,
    deciding_labels,
    judge,
    overall,
    taken_for,
)
from attar.evaluation.gate_config import GateConfig
from attar.evaluation.gate_records import gate_records, reason, summary
from attar.evaluation.intervals import Interval, wilson
from attar.teachers.base import TeacherInfo

GOOD, POOR = Interval(0.8, 0.7, 0.9), Interval(0.3, 0.2, 0.4)
TEACHER = TeacherInfo(name="t", identity="0123456789abcdef", dim=4, logit_scale=1.0)


def gap(low, high):
    return Interval((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("zero_shot", "differences", "lost", "verdict", "grounds"),
    [
        (GOOD, [gap(0.1, 0.2)], 0, "go", ()),
        # No probe could be made, so nothing is known against labels.
        (GOOD, [], 0, "blend", ("unsure",)),
        # Behind, but surely by no more than the margin.
        (GOOD, [gap(-0.04, -0.01)], 0, "go", ()),
        (GOOD, [gap(-0.05, -0.01)], 0, "go", ()),
        (GOOD, [gap(-0.0501, -0.01)], 0, "blend", ("behind",)),
        (GOOD, [gap(-0.06, 0.0)], 0, "blend", ("unsure",)),
        (GOOD, [gap(0.1, 0.2), gap(-0.3, -0.1)], 0, "blend", ("behind",)),
        (GOOD, [gap(-0.3, 0.1), gap(-0.3, -0.1)], 0, "blend", ("behind",)),
        (GOOD, [gap(0.1, 0.2)], 1, "blend", ("lost",)),
        (GOOD, [gap(-0.2, -0.1)], 10, "blend", ("behind", "lost")),
        # Wrong on most images, and yet ahead of a few labels.
        (POOR, [gap(0.1, 0.2)], 0, "go", ()),
        (POOR, [gap(0.1, 0.2)], 4, "blend", ("lost",)),
        (POOR, [gap(0.1, 0.2)], 5, "stop", ("lost",)),
        (POOR, [gap(-0.3, 0.1)], 0, "blend", ("unsure",)),
        (POOR, [gap(-0.2, -0.1)], 0, "stop", ("behind",)),
        # Whether it is wrong on most images cannot be told.
        (Interval(0.45, 0.4, 0.5), [gap(-0.2, -0.1)], 0, "blend", ("behind",)),
    ],
)
def test_the_rule(zero_shot, differences, lost, verdict, grounds):
    assert decide(zero_shot, differences, lost, 10, 0.05) == (verdict, grounds)


def test_domains_that_agree_speak_together_and_others_blend():
    assert overall(["go", "go"]) == "go"
    assert overall(["stop"]) == "stop"
    assert overall(["go", "stop"]) == "blend"
    assert overall(["go", "blend"]) == "blend"


def test_a_class_is_lost_when_another_name_is_provably_more_frequent():
    assert taken_for(np.array([10, 40, 5]), 0, 0.95) == 1
    assert taken_for(np.array([10, 40, 5]), 1, 0.95) is None
    # The third parties do not matter: 30 against 29 proves nothing.
    assert taken_for(np.array([29, 30, 500]), 2, 0.95) is None
    assert taken_for(np.array([29, 30, 0]), 0, 0.95) is None
    assert taken_for(np.array([0, 0, 7]), 2, 0.95) is None
    # 0 of n: n = 3 is not enough for 95 %, and 4 is.
    assert wilson(0, 3).high > 0.5 > wilson(0, 4).high
    assert taken_for(np.array([0, 3]), 0, 0.95) is None
    assert taken_for(np.array([0, 4]), 0, 0.95) == 1
    assert taken_for(np.array([6]), 0, 0.95) is None


def world(each=60, spread=0.3, seed=0):
    """Two domains of three classes; features are clouds around each class's axis.

    The teacher is right everywhere, but in "ink" it calls all of class b a "c".
    """
    random = np.random.default_rng(seed)
    labels = np.tile(np.repeat([0, 1, 2], each), 2)
    domains = np.repeat([0, 1], 3 * each)
    features = np.eye(3, 5)[labels] + spread * random.normal(size=(len(labels), 5))
    keys = [f"{number:064x}" for number in range(len(labels))]
    images = GateImages(
        labels=labels,
        domains=domains,
        class_names=("a", "b", "c"),
        domain_names=("photo", "ink"),
        drawn=draw_labels(keys, labels + 3 * domains, 5, 10),
    )
    answers = np.where((domains == 1) & (labels == 1), 2, labels)
    return images, answers, features


def test_a_teacher_that_loses_a_class_in_one_domain():
    images, answers, features = world()
    photo, ink, whole = judge(images, answers, {"teacher": features}, [0, 1], GateConfig())
    assert (photo.domain, photo.verdict, photo.grounds) == ("photo", "go", ())
    assert photo.zero_shot.value == 1
    assert (ink.domain, ink.verdict) == ("ink", "blend")
    assert ink.zero_shot == wilson(120, 180)
    assert [one.taken_for for one in ink.classes] == ["", "c", ""]
    assert [one.recall.value for one in ink.classes] == [1, 0, 1]
    assert (whole.domain, whole.verdict) == ("all", "blend")
    assert whole.num_images == 360
    assert whole.zero_shot == wilson(300, 360)
    for one in (photo, ink, whole):
        kinds = [(probe.labels_of, probe.decides) for probe in one.probes]
        assert kinds == [("others", True), ("own", False)]
    pooled = whole.probes[0].correct
    assert pooled.shape == (10, 360)
    assert np.array_equal(pooled[:, 180:], ink.probes[0].correct)


def test_labels_of_other_domains_only_are_what_others_means():
    images, answers, features = world(spread=0.05)
    # In "ink" the features of a and b change places: labels of "photo" mislead there.
    swapped = features.copy()
    ink = images.domains == 1
    swapped[ink & (images.labels == 0)] = features[ink & (images.labels == 1)]
    swapped[ink & (images.labels == 1)] = features[ink & (images.labels == 0)]
    found = judge(images, answers, {"teacher": swapped}, [1], GateConfig())
    assert len(found) == 1
    others, own = found[0].probes
    assert others.accuracies.mean() == pytest.approx(1 / 3, abs=0.01)
    assert own.accuracies.mean() == pytest.approx(1, abs=0.01)
    # 5 labels a class of 10 draws are not asked about, and 60 - 5 a class are.
    assert np.isfinite(own.correct).sum(axis=1).tolist() == [165] * 10
    assert np.isfinite(others.correct).all()
    by_own = judge(images, answers, {"teacher": swapped}, [1], GateConfig(labels_of="own"))[0]
    assert found[0].grounds == ("lost",)
    assert by_own.grounds == ("behind", "lost")


def test_a_teacher_that_knows_nothing_is_stopped():
    images, _, features = world()
    answers = (images.labels + 1) % 3
    found = judge(images, answers, {"teacher": features}, [0, 1], GateConfig())
    assert [one.verdict for one in found] == ["stop"] * 3


def test_few_images_are_no_proof_that_a_teacher_is_good():
    images, answers, features = world(each=4)
    photo = judge(images, answers, {"teacher": features}, [0], GateConfig())[0]
    assert photo.zero_shot.value == 1
    assert (photo.verdict, photo.grounds) == ("blend", ("unsure",))


def test_one_image_a_class_leaves_no_probe_and_proves_nothing():
    images, _, features = world(each=1)
    one = replace(images, domains=np.zeros_like(images.domains))
    every = replace(one, drawn=np.ones_like(images.drawn))
    found = judge(every, images.labels, {"teacher": features}, [0], GateConfig())[0]
    assert found.probes == ()
    assert (found.verdict, found.grounds) == ("blend", ("unsure",))
    assert "cannot be ruled out" in reason(found, GateConfig())


def test_the_students_own_backbone_has_a_say():
    images, answers, features = world(spread=0.05)
    noise = np.random.default_rng(5).normal(size=features.shape)
    answers = np.where(np.arange(360) % 5 == 0, (images.labels + 1) % 3, images.labels)
    alone = judge(images, answers, {"teacher": noise}, [0], GateConfig())[0]
    both = judge(images, answers, {"teacher": noise, "student": features}, [0], GateConfig())[0]
    assert alone.verdict == "go"
    assert (both.verdict, both.grounds) == ("blend", ("behind",))
    assert [probe.features for probe in both.probes] == ["teacher"] * 2 + ["student"] * 2


def test_one_domain_has_no_others():
    images, answers, features = world()
    one = replace(images, domains=np.zeros_like(images.domains))
    assert deciding_labels(one, GateConfig()) == "own"
    with pytest.raises(UsageError, match="two or more domains"):
        deciding_labels(one, GateConfig(labels_of="others"))
    found = judge(one, answers, {"teacher": features}, [0], GateConfig())[0]
    assert [(probe.labels_of, probe.decides) for probe in found.probes] == [("own", True)]


@pytest.mark.parametrize(
    "wrong",
    [{"labels_per_class": 0}, {"draws": 1}, {"margin": -0.1}, {"confidence": 1.0}],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", "-")):
        GateConfig(**wrong)


def test_the_words_carry_the_figures():
    images, answers, features = world()
    config = GateConfig()
    found = judge(images, answers, {"teacher": features}, [0, 1], config)
    said = reason(found[1], config)
    assert said.startswith("Zero-shot is right on 66.7 % (59.5 … 73.1) of 180 images; ")
    assert "with 5 labels a class of other domains" in said
    assert "1 of 3 classes are mostly called something else (b → c)" in said
    assert summary(found).startswith("Blend: go on photo; blend on ink. ")
    assert summary(found[:1]) == "Go. Distil it."


def test_a_probe_and_zero_shot_are_compared_on_the_same_images():
    images, _, features = world()
    # A fourth class has one image, which gives every draw its label and is never asked about.
    own = images.domains == 0
    labels = np.where(np.arange(360) == 0, 3, images.labels)
    images = replace(
        images,
        labels=labels,
        class_names=("a", "b", "c", "d"),
        drawn=images.drawn | (np.arange(360) == 0),
    )
    answers = np.where(labels == 3, 0, labels)  # zero-shot is wrong on that one alone
    found = judge(images, answers, {"teacher": features}, [0], GateConfig(labels_of="own"))
    teacher, *probes = [r for r in gate_records(found, TEACHER, "drawings", GateConfig())
                        if r.task == "teacher_gate"]  # fmt: skip
    assert teacher.metrics["acc1"] == pytest.approx(179 / 180)
    by_labels = {probe.extra["labels_of"]: probe for probe in probes}
    assert by_labels["others"].num_images == own.sum() == 180
    assert by_labels["others"].metrics["zero_shot"] == pytest.approx(179 / 180)
    probe = by_labels["own"]
    assert probe.num_images == 179
    assert probe.metrics["zero_shot"] == 1
    correct = found[0].probes[1].correct[:, 1:]
    share = np.nanmean(correct, axis=0).mean()
    assert probe.metrics["acc1"] == pytest.approx(share)
    assert probe.metrics["difference"] == pytest.approx(1 - share)


def test_every_finding_is_a_line():
    images, answers, features = world()
    found = judge(images, answers, {"teacher": features}, [0, 1], GateConfig())
    records = gate_records(found, TEACHER, "drawings", GateConfig())
    counts = {}
    for record in records:
        counts[record.task, record.role] = counts.get((record.task, record.role), 0) + 1
    assert counts == {
        ("teacher_gate", "teacher"): 3,
        ("teacher_gate", "probe"): 6,
        ("teacher_gate_class", "teacher"): 9,
    }
    assert [r.extra["verdict"] for r in records if "verdict" in r.extra] == ["go", "blend", "blend"]
    assert [r.domain for r in records if "summary" in r.extra] == ["all"]
    for record in records:
        if record.role == "probe":
            zero_shot = next(one.zero_shot.value for one in found if one.domain == record.domain)
            accuracy, difference = record.metrics["acc1"], record.metrics["difference"]
            assert zero_shot - accuracy == pytest.approx(difference)
    lost = next(r for r in records if r.domain == "ink" and r.extra.get("taken_for"))
    assert (lost.extra["class"], lost.extra["taken_for"]) == ("b", "c")
