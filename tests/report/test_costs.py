"""Accuracy against size and latency, from result files written by hand."""

import math
import re
from pathlib import Path

import pytest
from run_folders import record, three
from test_page import Page, report

from attar.records import Record, append_records
from attar.report.costs import cost_lines, cost_tables
from attar.report.looks import STYLES
from attar.report.scatter import Point, cost_plot
from attar.report.tables import result_tables

OTHER = "ViT-B-32/openai"
PLACE = {"split": "test_ood", "domain": "all", "dataset": "photos"}


def cost(role: str, parameters: float, megabytes: float, latency: float, **changes) -> Record:
    metrics = {"num_parameters": parameters, "megabytes": megabytes, "latency_ms": latency}
    extra = {"cpu": "a small chip", "device": "cpu", "threads": 1, "runtime": "torch"}
    return record(role, None, task="cost", metrics=metrics, extra=extra, **{**PLACE, **changes})


def compared(other: str = OTHER) -> list[Record]:
    rows = three(0.82, 0.663, 0.6, **PLACE)
    rows += [record(other, 0.71, model=other, **PLACE)]
    rows += [cost("teacher", 150e6, 600.5, 90.0), cost("student", 3.4e6, 13.6, 4.25)]
    return [*rows, cost(other, 88e6, 352.0, 61.0, model=other)]


def tables(records: list[Record], run: str = "run"):
    named = [(run, one) for one in records]
    return cost_tables(named, result_tables(named))


def test_students_teacher_and_others_stand_in_one_table() -> None:
    (table,) = tables(compared())
    assert table.headings == ["accuracy", "million parameters", "MB", "ms an image"]
    cells = {row.series.role: row.cells() for row in table.rows}
    assert cells == {
        "teacher": ["82.0", "150", "600", "90"],
        "student": ["66.3", "3.4", "13.6", "4.25"],
        "baseline": ["60.0", "–", "–", "–"],
        OTHER: ["71.0", "88", "352", "61"],
    }
    assert table.conditions == "on a small chip; device cpu; threads 1; by torch"


def test_probes_are_further_columns_of_the_same_table() -> None:
    probes = [
        record(role, acc1, task=task, metrics={"acc1_std": 0.012}, **PLACE)
        for task, accuracies in (("linear_probe_5_shot", (0.7, 0.6)), ("linear_probe", (0.9, 0.8)))
        for role, acc1 in zip(("teacher", "student"), accuracies, strict=True)
    ]
    (table,) = tables([*compared(), *probes])
    assert table.columns == ("accuracy", "linear probe 5 shot", "linear probe")
    cells = {row.series.role: row.cells()[:3] for row in table.rows}
    assert cells["student"] == ["66.3", "60.0", "80.0"]
    assert cells[OTHER] == ["71.0", "–", "–"]
    shown = result_tables([("run", one) for one in probes])
    assert all("acc1_std" in one.metrics for one in shown)


def test_a_cost_measured_on_other_images_is_no_row_of_these() -> None:
    elsewhere = three(0.5, 0.4, 0.3, split="held_out", dataset="photos")
    assert [table.split for table in tables([*compared(), *elsewhere])] == ["test_ood"]
    assert tables(three(0.5, 0.4, 0.3)) == []


def test_runs_are_averaged_by_series() -> None:
    named = [("a", one) for one in compared()]
    named += [("b", one) for one in three(0.82, 0.7, 0.6, **PLACE)]
    named += [("b", cost("student", 3.4e6, 13.6, 4.75))]
    (table,) = cost_tables(named, result_tables(named))
    (student,) = (row for row in table.rows if row.series.role == "student")
    assert student.accuracies[0] == pytest.approx((0.663 + 0.7) / 2)
    assert student.latency_ms == pytest.approx(4.5)


def test_the_terminals_rows_are_of_one_width() -> None:
    lines = cost_lines([*compared(), *compared(other="another")])
    assert len({len(line) for line in lines}) == 1
    assert ("", f"student · {'vl2v-adip'}", "66.3", "3.4", "13.6", "4.25") in lines
    assert cost_lines(three(0.5, 0.4, 0.3)) == []


def test_the_page_shows_table_and_scatter(tmp_path: Path) -> None:
    append_records(tmp_path / "run" / "results.jsonl", three(0.8, 0.7, 0.6))
    append_records(tmp_path / "run" / "evaluations" / "photos" / "results.jsonl", compared())
    html, page = report(tmp_path / "run")
    assert page.open == []
    assert "Accuracy against size and latency" in page.headings
    assert "Timed on a small chip; device cpu; threads 1; by torch." in page.text
    (figure,) = re.findall(r'<svg [^>]*aria-label="Accuracy against parameters.*?</svg>', html,
                           re.DOTALL)  # fmt: skip
    for words in (
        "student · vl2v-adip: 66.3 % at 3.4 million parameters and 4.25 ms",
        f"{OTHER}: 71.0 % at 88 million parameters and 61 ms",
        "million parameters</text>",
        "ms an image</text>",
    ):
        assert words in figure
    assert "60.0 %" not in figure, "what the baseline costs is not known"
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"#[0-9a-f]{6}\b", figure)
    assert "http" not in html


def test_without_costs_there_is_no_section(tmp_path: Path) -> None:
    append_records(tmp_path / "run" / "results.jsonl", three(0.8, 0.7, 0.6))
    assert "size and latency" not in " ".join(report(tmp_path / "run")[1].headings).lower()


def points(**changes: float) -> list[Point]:
    values = {"accuracy": 50.0, "num_parameters": 1e6, "latency_ms": 2.0, **changes}
    return [Point(label="one <&> $x$", style=STYLES["student"][0], **values)]


def test_a_scatter_of_one_model_and_odd_names() -> None:
    svg = cost_plot(points(), ("accuracy, %", "key"))
    assert "one &lt;&amp;&gt; $x$" in svg
    assert Page(svg).open == []


@pytest.mark.parametrize("unknown", ["accuracy", "num_parameters", "latency_ms"])
def test_what_is_not_known_is_not_drawn(unknown: str) -> None:
    assert cost_plot(points(**{unknown: math.nan}), ("accuracy, %", "key")) == ""
