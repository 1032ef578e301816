"""The Markdown table and the cells' files, from records written by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from attar.bench.cells import (
    Cell,
    load_cell,
    load_cells,
    save_cell,
    score_on_source_validation,
)
from attar.bench.page import write_page
from attar.bench.paired import paired_difference
from attar.bench.table import domains_table, read_table, write_tables
from attar.errors import UsageError
from attar.records import Record, read_records

FACTS = {"student": "resnet18", "seeds": 2}
NOTE = "Top-1 accuracy in % on the held-out domain (student: resnet18, seeds: 2)."
BELOW = (
    " worst: the lowest of the domains; in-domain: source validation images, averaged over the "
    "held-out domains."
)
AGAINST_ERM = (
    " minus erm: the mean difference to it, cell by cell (held-out domain and seed), with "
    "Student's 95 % interval over these cells."
)


def record(
    acc1: float,
    held_out: str,
    role: str = "student",
    method: str = "erm",
    seed: int = 0,
    **changes: object,
) -> Record:
    """A result on all images of a split, of a cell that kept `held_out` out."""
    extra = {"held_out_domain": held_out, "seed": seed}
    changes = {"split": "held_out", "extra": extra, **changes}
    return Record(
        dataset="d",
        model="m",
        pretrained="",
        task="zeroshot_classification",
        metrics={"acc1": acc1, "mean_per_class_recall": acc1 / 2},
        role=role,
        method=method if role == "student" else "",
        **changes,
    )


def test_a_table_worked_out_by_hand() -> None:
    records = [
        record(0.5, "photo", method="feature-mse"),
        record(0.7, "photo", method="feature-mse", seed=1),
        record(0.4, "art", method="feature-mse"),
        record(0.5, "art", method="feature-mse", seed=1),
        record(0.9, "photo", method="feature-mse", split="val"),
        record(0.8, "photo", method="feature-mse", split="val", seed=1),
        record(0.65, "art", method="feature-mse", split="val"),
        record(0.25, "photo"),
        record(0.75, "art"),
        record(0.8, "art", role="strict teacher"),
        record(0.9, "photo", role="teacher"),
        record(0.9, "photo", role="teacher"),
        record(0.95, "art", role="teacher"),
        record(0.99, "art", role="teacher", split="val"),
    ]
    # feature-mse: photo (50 + 70) / 2 = 60 ± 14.1, art 45 ± 7.1; the seeds' means (50 + 40) / 2 and
    # (70 + 50) / 2: 52.5 ± 10.6; in-domain ((90 + 80) / 2 + 65) / 2 = 75, one seed of both domains.
    # Against erm, seed 0: +25 and -35: -5 ± 12.706 · 42.426 / √2 (t of one degree of freedom).
    assert domains_table(records, FACTS).splitlines() == [
        "| | art | photo | mean | worst | in-domain | minus erm [95 %] |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| teacher | 95.0 | 90.0 | 92.5 | 90.0 | 99.0 | – |",
        "| strict teacher (never saw this domain) | 80.0 | – | – | – | – | – |",
        "| erm | 75.0 | 25.0 | 50.0 | 25.0 | – | – |",
        "| feature-mse | 45.0 ± 7.1 | 60.0 ± 14.1 | 52.5 ± 10.6 | 45.0 | 75.0 "
        "| -5.0 [-386.2, +376.2] |",
        "",
        NOTE + BELOW + AGAINST_ERM,
    ]


@pytest.mark.parametrize("differences", [[3.0, 5.0], [11.8, 9.7, 7.3, 17.2], [1.0] * 3 + [0.0] * 9])
def test_the_interval_is_that_of_a_paired_t_test(differences: list[float]) -> None:
    reference = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    found = paired_difference(differences)
    assert found is not None
    assert found.mean == pytest.approx(np.mean(differences))
    assert found.mean - found.half_width == pytest.approx(reference.low)
    assert found.mean + found.half_width == pytest.approx(reference.high)


def test_one_pair_gives_no_interval() -> None:
    assert paired_difference([3.0]) is None
    records = [
        record(0.5, "art"),
        record(0.9, "photo", method="kd"),
        record(0.8, "art", method="kd"),
    ]
    assert domains_table(records, {}).splitlines()[3] == (
        "| kd | 80.0 | 90.0 | 85.0 | 80.0 | – | – |"
    )


def test_a_variant_is_a_row_of_its_own_and_is_explained() -> None:
    of_variant = {
        "held_out_domain": "art",
        "seed": 0,
        "method": "erm+swad",
        "variant": "method erm",
    }
    records = [
        record(0.5, "art"),
        record(0.75, "art", extra=of_variant),
        record(0.9, "art", role="teacher"),
        record(0.1, "art", role="teacher", extra=of_variant),
    ]
    lines = domains_table(records, {}).splitlines()
    assert lines[2].startswith("| teacher | 90.0 |")
    assert lines[3].startswith("| erm | 50.0 |")
    assert lines[4].startswith("| erm+swad | 75.0 |")
    assert [line for line in lines if line.startswith("- ")] == ["- erm+swad: method erm."]


def test_each_teacher_has_a_row_with_its_name() -> None:
    def of_variant(name: str) -> dict[str, object]:
        return {"held_out_domain": "art", "seed": 0, "method": name, "variant": f"teacher {name}"}

    records = [
        replace(record(0.5, "art", role="teacher"), model="pocket"),
        replace(record(0.9, "art", role="teacher", extra=of_variant("a")), model="ViT-B-16/openai"),
        replace(record(0.8, "art", role="teacher", extra=of_variant("b")), model="RN50/openai"),
        replace(record(0.1, "art", role="teacher", extra=of_variant("c")), model="pocket"),
        record(0.4, "art"),
    ]
    table = read_table(records)
    assert [(row.name, row.outside["art", 0]) for row in table.rows] == [
        ("teacher pocket (its head saw this domain)", pytest.approx(50)),
        ("teacher RN50/openai", pytest.approx(80)),
        ("teacher ViT-B-16/openai", pytest.approx(90)),
        ("erm", pytest.approx(40)),
    ]
    assert [row.repeated for row in table.rows] == [True, True, True, False]
    assert table.reference is not None
    assert table.rows[1].minus(table.reference) is None
    assert not any(row.variant for row in table.rows)


def test_an_oracle_is_a_column_that_says_so() -> None:
    oracle = {"held_out_domain": "art", "seed": 0, "method": "kd"}
    records = [
        record(0.5, "art", method="kd"),
        record(0.7, "art", method="simkd"),
        record(0.6, "art", role="oracle", extra=oracle),
    ]
    lines = domains_table(records, {}).splitlines()
    assert lines[0] == "| | art | mean | worst | in-domain | oracle mean |"
    assert lines[2] == "| kd | 50.0 | 50.0 | 50.0 | – | 60.0 |"
    assert lines[3] == "| simkd | 70.0 | 70.0 | 70.0 | – | – |"
    assert "an upper bound, no result of the protocol" in lines[-1]


def test_the_page_holds_the_table_and_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    records = [
        record(value + gain, domain, method=method)
        for domain, value in (("art", 0.4), ("a <b>", 0.6), ("sketch", 0.5))
        for method, gain in (("erm", 0.0), ("kd", 0.1 + value / 100))
    ]
    page = write_page(read_table(records), tmp_path / "page.html", FACTS).read_text()
    assert "Best mean over the held-out domains: kd, 60.5 %." in page
    assert "Against erm +10.5 [+10.3, +10.7] points over 3 cells." in page
    assert "a &lt;b&gt;" in page
    assert "<b>" not in page
    for place in ("http:", "https:", "src="):
        assert place not in page.replace("http://www.w3.org/", "")
    assert page.count("<svg") == 1 + 4  # the plot; the marks of three domains and of the mean


def test_a_page_without_a_whole_row_says_so(tmp_path: Path) -> None:
    records = [record(0.5, "art"), record(0.5, "photo", method="kd")]
    page = write_page(read_table(records), tmp_path / "page.html", {}).read_text()
    assert "No method has been measured on every held-out domain yet." in page


def test_only_top_1_on_all_images_of_a_split_counts() -> None:
    fidelity = Record(
        dataset="d",
        model="m",
        pretrained="",
        task="fidelity",
        metrics={"agreement": 0.1},
        method="erm",
        split="held_out",
        extra={"held_out_domain": "art"},
    )
    records = [
        record(0.5, "art"),
        record(0.1, "art", domain="art"),
        record(0.1, "art", split="test_id"),
        record(0.1, "art", role="untrained"),
        fidelity,
    ]
    assert domains_table(records, {}).splitlines()[2:3] == ["| erm | 50.0 | 50.0 | 50.0 | – | – |"]
    assert len(domains_table(records, {}).splitlines()) == 5


def test_both_files_are_written_from_the_same_records(tmp_path: Path) -> None:
    records = [record(0.5, "art"), record(0.25, "straße")]
    assert write_tables(records, tmp_path, FACTS) == tmp_path / "table.md"
    assert (tmp_path / "table.md").read_text() == domains_table(records, FACTS)
    assert read_records(tmp_path / "results.jsonl") == records
    write_tables(records[:1], tmp_path, FACTS)
    assert read_records(tmp_path / "results.jsonl") == records[:1]


def test_a_cell_keeps_its_records_with_what_the_table_sorts_them_by(tmp_path: Path) -> None:
    cell = Cell(method="erm", held_out_domain="art", seed=3, lr=3e-4)
    assert cell.name == "erm/art/seed3-lr0.0003"
    path = tmp_path / f"{cell.name}.json"
    assert load_cell(path, {"student": "resnet18"}) is None
    given = record(0.5, "", extra={"note": "kept"}, num_images=7)
    save_cell(path, {"student": "resnet18"}, [given], cell.facts())
    (found,) = load_cell(path, {"student": "resnet18"}) or []
    assert (found.metrics, found.num_images) == (given.metrics, 7)
    assert found.extra == {
        "note": "kept",
        "method": "erm",
        "held_out_domain": "art",
        "seed": 3,
        "lr": 3e-4,
    }
    assert found.pretrained == ""  # a path of one machine
    with pytest.raises(UsageError, match=rf"{path} was run with another .*student.*teacher"):
        load_cell(path, {"student": "resnet34", "teacher": "pocket"})


def test_cells_are_found_beside_run_folders_and_whatever_their_domain_is_called(
    tmp_path: Path,
) -> None:
    for number, domain in enumerate(("art", "photo/indoor")):
        cell = Cell(method="erm", held_out_domain=domain, seed=0, lr=1e-3)
        save_cell(tmp_path / f"{cell.name}.json", {}, [record(number / 2, "")], cell.facts())
        run = tmp_path / cell.name
        (run / "student").mkdir(parents=True)
        for name in ("environment.json", "set_aside.json", "student/config.json"):
            (run / name).write_text(json.dumps([]))
    strict = record(1.0, "art", role="strict teacher")
    save_cell(tmp_path / "strict-teacher" / "art.json", {}, [strict], {"held_out_domain": "art"})
    found = [(r.role, r.extra["held_out_domain"], r.metrics["acc1"]) for r in load_cells(tmp_path)]
    assert found == [
        ("student", "art", 0.0),
        ("student", "photo/indoor", 0.5),
        ("strict teacher", "art", 1.0),
    ]


def test_a_cell_is_chosen_by_its_student_on_source_validation_images() -> None:
    wanted = record(0.6, "art", split="val")
    others = [
        record(0.9, "art"),
        record(0.9, "art", split="val", role="teacher"),
        record(0.9, "art", split="val", domain="photo"),
    ]
    assert score_on_source_validation([*others, wanted], "a cell") == 0.3
    with pytest.raises(UsageError, match=r"cell erm/art has no .*raise --splits\.val-fraction"):
        score_on_source_validation(others, "erm/art")
