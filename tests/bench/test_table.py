"""The Markdown table and the cells' files, from records written by hand."""

import json
from pathlib import Path

import pytest

from attar.bench.cells import (
    Cell,
    load_cell,
    load_cells,
    save_cell,
    score_on_source_validation,
)
from attar.bench.table import domains_table, write_tables
from attar.errors import UsageError
from attar.records import Record, read_records

FACTS = {"student": "resnet18", "seeds": 2}
NOTE = "Top-1 accuracy in % on the held-out domain (student: resnet18, seeds: 2)."


def record(
    acc1: float, held_out: str, role: str = "student", method: str = "erm", **changes: object
) -> Record:
    """A result on all images of a split, of a cell that kept `held_out` out."""
    changes = {"split": "held_out", "extra": {"held_out_domain": held_out}, **changes}
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
        record(0.7, "photo", method="feature-mse"),
        record(0.4, "art", method="feature-mse"),
        record(0.5, "art", method="feature-mse"),
        record(0.9, "photo", method="feature-mse", split="val"),
        record(0.8, "photo", method="feature-mse", split="val"),
        record(0.65, "art", method="feature-mse", split="val"),
        record(0.25, "photo"),
        record(0.75, "art"),
        record(0.8, "art", role="strict teacher"),
        record(0.9, "photo", role="teacher"),
        record(0.9, "photo", role="teacher"),
        record(0.95, "art", role="teacher"),
        record(0.99, "art", role="teacher", split="val"),
    ]
    # feature-mse: photo (50 + 70) / 2 = 60 ± 14.1, art 45 ± 7.1, mean (60 + 45) / 2 = 52.5;
    # in-domain ((90 + 80) / 2 + 65) / 2 = 75.
    assert domains_table(records, FACTS).splitlines() == [
        "| | art | photo | mean | in-domain |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| teacher | 95.0 | 90.0 | 92.5 | 99.0 |",
        "| strict teacher (never saw this domain) | 80.0 | – | – | – |",
        "| erm | 75.0 | 25.0 | 50.0 | – |",
        "| feature-mse | 45.0 ± 7.1 | 60.0 ± 14.1 | 52.5 | 75.0 |",
        "",
        NOTE,
    ]


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
    assert domains_table(records, {}).splitlines()[2:3] == ["| erm | 50.0 | 50.0 | – |"]
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
