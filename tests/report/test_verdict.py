from run_folders import record, three

from attar.records import Record
from attar.report.tables import ALL, result_tables
from attar.report.verdict import verdict


def say(*runs: list[Record]) -> str:
    tables = result_tables((f"run{i}", one) for i, run in enumerate(runs) for one in run)
    return verdict(tables, len(runs)).replace("\u00a0", " ")


def test_student_between_baseline_and_teacher() -> None:
    text = say(three(0.820, 0.663, 0.600))
    assert "On the held-out domain sketch (2,000 images)" in text
    assert "is right on 66.3 % of images" in text
    assert "15.7 points below the teacher pocket (82.0 %)" in text
    assert "6.3 points above the baseline erm (60.0 %)" in text
    assert "chance" not in text
    assert "worse" not in text
    assert "One run, one seed" in text


def test_a_worse_student_is_called_worse() -> None:
    text = say(three(0.82, 0.50, 0.60))
    assert "10.0 points below the baseline erm (60.0 %)" in text
    assert "Here the student is worse than the baseline erm." in text


def test_a_student_above_its_teacher() -> None:
    assert "5.0 points above the teacher pocket (60.0 %)" in say(three(0.60, 0.65, 0.50))


def test_a_gap_within_chance_is_said_to_be_and_not_called_worse() -> None:
    text = say(three(0.82, 0.59, 0.60, num_images=200))
    assert "1.0 point below the baseline erm (60.0 %), a gap that chance alone could make" in text
    assert "on 200 images" in text
    assert "worse" not in text


def test_equal_numbers_are_level() -> None:
    assert "level with the baseline erm (66.3 %)" in say(three(0.82, 0.6631, 0.6629))


def test_the_held_out_split_wins_over_test_id() -> None:
    text = say([*three(0.99, 0.98, 0.97, split="test_id", domain=ALL), *three(0.82, 0.66, 0.60)])
    assert "98.0" not in text
    assert "66.0 %" in text


def test_domains_are_named_weakest_and_strongest() -> None:
    parts = [("photo", 0.9), ("cartoon", 0.7), ("sketch", 0.5)]
    records = [record("student", acc, split="test_id", domain=d) for d, acc in parts]
    text = say(records)
    assert "On the test images of the training domains (6,000 images)" in text
    assert "weakest domain is sketch (50.0 %), its strongest photo (90.0 %)" in text
    assert "no teacher or baseline to compare it with" in text


def test_other_measures_are_called_what_they_are() -> None:
    """A suite's own score, or a mean average precision, is no agreement with the teacher."""
    for metric, words in (
        ("score", "score by each data set's own metric"),
        ("map_11_points", "mean average precision"),
    ):
        one = {"domain": ALL, "metrics": {metric: 0.61}}
        text = say([record("student", None, **one), record("teacher", None, **one)])
        assert f"has a {words} of 61.0 %" in text
        assert "teacher's answer" not in text
        assert "is right on" not in text


def test_unlabelled_images_speak_of_agreement_only() -> None:
    def fidelity(role: str, agreement: float, **changes: object) -> Record:
        metrics = {"agreement": agreement, "mean_cosine": agreement}
        more = {"task": "fidelity", "split": "test_id", "domain": ALL, "metrics": metrics}
        return record(role, None, **{**more, **changes})

    text = say(
        [
            fidelity("teacher", 1.0),
            fidelity("student", 0.54),
            fidelity("untrained", 0.02, method="untrained"),
            fidelity("fitted projection", 0.60, method=""),
        ]
    )
    assert "gives the teacher's answer on 54.0 % of images" in text
    assert "52.0 points above the untrained student (2.0 %)" in text
    assert "Here the student is worse than the fitted projection." in text
    assert "below the teacher" not in text
    assert "is right on" not in text


def test_several_runs_are_averaged_over_the_domains_both_have() -> None:
    first = three(0.80, 0.60, 0.50, domain="sketch")
    second = three(0.90, 0.80, 0.85, domain="photo")
    third = [record("student", 0.40, domain="sketch", method="feature-mse")]
    text = say(first, second, third)
    assert "student vl2v-adip (lite0) has an average accuracy of 70.0 % over 2 domains" in text
    assert "15.0 points below the teacher pocket (better on 0 of 2 domains)" in text
    assert "2.5 points above the baseline erm (better on 1 of 2 domains)" in text
    assert "feature-mse (lite0) has an average accuracy of 40.0 % over sketch" in text
    assert "40.0 points below the teacher pocket" in text


def test_nothing_measured_claims_nothing() -> None:
    assert say([]).startswith("There are no results yet")
    assert say([record("teacher", 0.8)]).startswith("Nobody measured a student")
