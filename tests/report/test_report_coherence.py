import re
from pathlib import Path

import pytest
from run_folders import record, three, write_full_run

from attar.records import Record, append_records
from attar.report.coherence import coherence_lines, coherence_rows
from attar.report.page import write_report
from attar.report.tables import result_tables, three_way_table


def coherence(split: str, relative: float, role: str = "student", **changes: object) -> Record:
    metrics = {
        "neighborhood_overlap@10": relative + 0.2,
        "neighborhood_overlap@3": relative + 0.1,
        "neighborhood_overlap@5": relative + 0.15,
        "relative_coherence": relative,
        "alignment_inversions@2": 0.18,
        "alignment_inversions@3": 0.62,
        "squared_distance": 1.294,
        "angle": 69.23,
    }
    fields = {"task": "coherence", "split": split, "domain": "all", "metrics": metrics}
    return record(role, None, **{**fields, **changes})


def named(*records: Record, run: str = "run") -> list[tuple[str, Record]]:
    return [(run, one) for one in records]


def page(run: Path) -> str:
    out = run.parent / "page.html"
    write_report([run], out)
    return out.read_text(encoding="utf-8")


def test_rows_come_seen_before_unseen_and_student_before_baseline() -> None:
    rows = coherence_rows(
        named(
            coherence("unseen_classes", 0.081, "baseline"),
            coherence("unseen_classes", 0.022),
            coherence("test_id", 0.1),
            coherence("train", 0.305),
            record("student", 0.5),
        )
    )
    assert [(row.place, row.series.role) for row in rows] == [
        ("training images", "student"),
        ("unseen images", "student"),
        ("unseen classes", "student"),
        ("unseen classes", "baseline"),
    ]


def test_the_later_of_two_records_wins_and_runs_are_averaged() -> None:
    rows = coherence_rows(
        [
            *named(coherence("train", 0.9), coherence("train", 0.1), run="a"),
            *named(coherence("train", 0.3), run="b"),
        ]
    )
    (row,) = rows
    assert row.num_runs == 2
    assert row.values["relative_coherence"] == pytest.approx(0.2)


def test_a_single_domain_is_shown_once_and_several_apart() -> None:
    one = [coherence("test_id", 0.1), coherence("test_id", 0.1, domain="photo")]
    assert [row.place for row in coherence_rows(named(*one))] == ["unseen images"]
    two = [*one, coherence("test_id", 0.2, domain="art")]
    rows = coherence_rows(named(*two))
    assert [row.place for row in rows] == [
        "unseen images",
        "unseen images: art",
        "unseen images: photo",
    ]
    assert [row.overall for row in rows] == [True, False, False]


def test_lines_for_a_terminal() -> None:
    header, row = coherence_lines([coherence("unseen_classes", 0.022), record("student", 0.5)])
    assert header == (
        "images", "model", "count", "relative", "common @3", "common @5", "common @10",
        "inverted @2", "inverted @3", "distance²", "angle, °",
    )  # fmt: skip
    assert row == (
        "unseen classes", "student · vl2v-adip", "2,000", "0.022", "0.122", "0.172", "0.222",
        "0.18", "0.62", "1.294", "69.2",
    )  # fmt: skip
    assert coherence_lines([record("student", 0.5)]) == []


def test_a_model_without_a_common_space_shows_what_it_has() -> None:
    partial = coherence("train", 0.1, "other", metrics={"neighborhood_overlap@5": 0.25})
    _, student, other = coherence_lines([coherence("train", 0.1), partial])
    assert student[3] == "0.100"
    assert other[3:7] == ("–", "–", "0.250", "–")


def test_accuracy_tables_have_no_row_of_it() -> None:
    records = [record("student", 0.5), coherence("held_out", 0.1), coherence("train", 0.1)]
    tables = result_tables(named(*records))
    assert [(table.split, len(table.rows)) for table in tables] == [("held_out", 1)]
    assert len(three_way_table(records)) == 2


def test_the_page_has_a_table_and_a_plot_of_each_kind(tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "run")
    before = page(run)
    assert "Coherence with the teacher" not in before
    splits = [coherence(s, 0.305) for s in ("train", "unseen_classes")]
    append_records(run / "results.jsonl", splits)
    html = page(run)
    section = html[html.index("<h2>Coherence with the teacher") :]
    section = section[: section.index("</section>")]
    assert section.count("<figure>") == 3
    for text in ("training images", "unseen classes", "neighbours in common @5", "0.305", "69.2"):
        assert text in section
    assert html.count('role="img"') == before.count('role="img"') + 3
    plots = re.findall(r'<svg [^>]*role="img".*?</svg>', section, re.DOTALL)
    for plot in plots:
        assert re.search(r'aria-label="Dot plot of [^"]*student · vl2v-adip 0\.', plot)
        assert not re.search(r"#[0-9a-f]{6}\b", plot)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_coherence_alone_is_a_report_too(tmp_path: Path) -> None:
    append_records(tmp_path / "run" / "results.jsonl", [coherence("train", 0.1)])
    html = page(tmp_path / "run")
    assert "Only the coherence with the teacher was measured" in html
    assert "There are no results yet" not in html


def test_other_plots_stay_as_they_are(tmp_path: Path) -> None:
    append_records(tmp_path / "run" / "results.jsonl", three(0.8, 0.7, 0.6))
    plain = page(tmp_path / "run")
    append_records(tmp_path / "run" / "results.jsonl", [coherence("train", 0.1)])
    figures = re.findall(r'<figure class="plot">.*?</figure>', plain, re.DOTALL)
    assert figures == re.findall(
        r'<figure class="plot">.*?</figure>', page(tmp_path / "run"), re.DOTALL
    )
