import math

import pytest
from run_folders import record, three

from attar.records import Record
from attar.report.tables import (
    ALL,
    average_runs,
    result_tables,
    series_labels,
    three_way_table,
    with_shared_baseline,
)


def named(records: list[Record], run: str = "run") -> list[tuple[str, Record]]:
    return [(run, one) for one in records]


def test_the_terminal_table_has_one_row_a_model_and_percent() -> None:
    records = [
        *three(0.9, 0.8, 0.7, split="test_id", domain="photo", num_images=100),
        *three(0.7, 0.6, 0.5, split="test_id", domain="cartoon", num_images=300),
        *three(0.75, 0.65, 0.55, split="test_id", domain=ALL, num_images=400),
    ]
    header, *rows = three_way_table(records)
    assert header[:5] == ("split", "model", "photo", "cartoon", "all")
    assert rows[0][:5] == ("test_id", "teacher · pocket", "90.0", "70.0", "75.0")
    assert rows[1][:5] == ("test_id", "student · vl2v-adip", "80.0", "60.0", "65.0")
    assert rows[2][:5] == ("test_id", "baseline · erm", "70.0", "50.0", "55.0")
    errors = [row[header.index("calibration error")] for row in rows]
    assert errors == ["4.1 (raw)", "4.1", "4.1"]  # nobody fitted the teacher's confidence


def test_no_records_give_no_rows() -> None:
    assert three_way_table([]) == []


def test_the_split_that_matters_comes_first_and_single_domains_have_no_total() -> None:
    records = [
        *three(0.9, 0.8, 0.7, split="test_id", domain=ALL),
        *three(0.8, 0.7, 0.6),
        *three(0.8, 0.7, 0.6, domain=ALL),
    ]
    tables = result_tables(named(records))
    assert [table.split for table in tables] == ["held_out", "test_id"]
    assert tables[0].domains == ("sketch",)
    assert tables[1].domains == (ALL,)


def test_a_total_nobody_measured_is_the_mean_over_images_without_calibration() -> None:
    records = [
        record("student", 0.9, domain="photo", num_images=100),
        record("student", 0.5, domain="sketch", num_images=300),
    ]
    (table,) = result_tables(named(records))
    assert table.rows[0].value("acc1") == pytest.approx(0.6)
    assert table.rows[0].counts[ALL] == 400
    assert math.isnan(table.rows[0].value("ece"))
    assert math.isnan(table.rows[0].value("mean_per_class_recall"))


def test_a_measurement_made_again_replaces_the_old_one() -> None:
    (table,) = result_tables(named([record("student", 0.1), record("student", 0.2)]))
    assert [row.value("acc1") for row in table.rows] == [0.2]


def test_fidelity_joins_its_row_and_other_tasks_stand_apart() -> None:
    records = [
        record("student", 0.6),
        record("student", None, task="fidelity", metrics={"agreement": 0.7, "mean_cosine": 0.8123}),
        record("student", 0.9, task="linear_probe"),
    ]
    tables = result_tables(named(records))
    assert [table.task for table in tables] == ["", "linear_probe"]
    assert len(tables[0].rows) == 1
    header, row = three_way_table(records[:2])
    assert row[header.index("agreement with teacher")] == "70.0"
    assert row[header.index("cosine to teacher")] == "0.812"


def test_unlabelled_data_is_compared_by_agreement() -> None:
    records = [record("student", None, task="fidelity", metrics={"agreement": 0.541})]
    (table,) = result_tables(named(records))
    assert table.headline == "agreement"
    assert three_way_table(records)[1] == ("held_out", "student · vl2v-adip", "54.1")


def test_missing_and_infinite_numbers_are_dashes() -> None:
    records = [record("student", 0.5), record("baseline", math.inf, domain="photo")]
    header, *rows = three_way_table(records)
    assert header[2:4] == ("sketch", "photo")
    assert rows[0][3] == "–"
    assert rows[1][2:4] == ("–", "–")


def test_the_same_teacher_in_two_runs_is_one_row() -> None:
    first, second = three(0.8, 0.7, 0.6), three(0.8, 0.65, 0.6)
    (table,) = result_tables([*named(first, "a"), *named(second, "b")])
    assert [(row.series.role, row.runs) for row in table.rows] == [
        ("teacher", ("a", "b")),
        ("student", ("a",)),
        ("student", ("b",)),
        ("baseline", ("a", "b")),
    ]


def test_averaging_runs_weighs_domains_alike_and_needs_all_of_them() -> None:
    pairs = [
        *named([record("student", 0.6, domain="sketch", num_images=10)], "a"),
        *named([record("student", 0.8, domain="sketch", num_images=10)], "b"),
        *named([record("student", 0.9, domain="photo", num_images=990)], "c"),
        *named([record("baseline", 0.5, domain="photo", num_images=990)], "c"),
    ]
    (table,) = result_tables(pairs)
    student, baseline = average_runs(table).rows
    assert student.value("acc1", "sketch") == pytest.approx(0.7)
    assert student.value("acc1") == pytest.approx(0.8)
    assert student.runs == ("a", "b", "c")
    assert math.isnan(baseline.value("acc1"))


def test_labels_name_the_model_only_where_needed() -> None:
    rows = [record("student", 0.1), record("student", 0.2, model="resnet18"), record("teacher", 1)]
    (table,) = result_tables(named(rows))
    assert list(series_labels(row.series for row in table.rows).values()) == [
        "teacher · pocket",
        "student · vl2v-adip (lite0)",
        "student · vl2v-adip (resnet18)",
    ]


def test_a_plain_run_is_the_baseline_of_the_others_but_not_of_itself() -> None:
    plain = named([record("student", 0.5, method="erm")], "plain")
    distilled = named([record("student", 0.6)], "distilled")
    assert with_shared_baseline(plain) == plain
    roles = [one.role for _, one in with_shared_baseline([*plain, *distilled])]
    assert roles == ["baseline", "student"]


def test_counts_are_those_of_the_labelled_images() -> None:
    fidelity = record("student", None, task="fidelity", metrics={"agreement": 0.7}, num_images=900)
    (table,) = result_tables(named([record("student", 0.6, num_images=100), fidelity]))
    assert table.rows[0].counts["sketch"] == 100


def test_a_suites_sets_are_shown_by_their_own_metric() -> None:
    """A mean per class stands beside an accuracy: what they are reported by decides, not acc1."""
    records = [
        record("student", 0.2, domain="pets", metrics={"acc1": 0.2, "score": 0.3}),
        record("student", None, domain="voc2007", metrics={"score": 0.6}),
        record("student", None, domain=ALL, metrics={"score": 0.45, "effective_robustness": 0.1}),
    ]
    (table,) = result_tables(named(records))
    assert table.headline == "score"
    header, row = three_way_table(records)
    assert header[2:] == ("pets", "voc2007", "all", "effective robustness")
    assert row[2:] == ("30.0", "60.0", "45.0", "10.0")
