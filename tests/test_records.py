"""results.jsonl: one measurement a line, which outlives crashes."""

import json
from pathlib import Path

import pytest

from attar.records import Record, append_records, read_records


def record(**changes: object) -> Record:
    values = {
        "dataset": "photos",
        "model": "timm/resnet18",
        "pretrained": "runs/a",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5},
    }
    return Record(**(values | changes))


FULL = record(
    role="baseline",
    method="erm",
    split="held_out",
    domain="Straße",
    num_images=12,
    language="de",
    extra={"seed": 3, "lr": 1e-4, "note": None},
    metrics={"acc1": 1 / 3, "ece": 1e-17},
)


def test_records_read_back_exactly_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run" / "results.jsonl"
    append_records(path, [record(), FULL])
    append_records(path, iter([record(model="b")]))
    assert read_records(path) == [record(), FULL, record(model="b")]


def test_a_line_is_json_under_clip_benchmark_s_keys(tmp_path: Path) -> None:
    append_records(tmp_path / "r.jsonl", [FULL])
    (line,) = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    values = json.loads(line)
    assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(values)
    assert values["metrics"]["acc1"] == 1 / 3
    assert "Straße" in line


def test_nothing_to_append_makes_an_empty_file(tmp_path: Path) -> None:
    append_records(tmp_path / "r.jsonl", [])
    assert read_records(tmp_path / "r.jsonl") == []


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_line_cut_short_is_skipped_and_later_ones_are_kept(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "r.jsonl"
    # The last word is of characters of two bytes, so that some cuts go through one.
    append_records(path, [record(), record(extra={"domain": "ßßßßßßßß"})])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = [record()] if cut > 1 else [record(), record(extra={"domain": "ßßßßßßßß"})]
    assert read_records(path) == kept
    append_records(path, [FULL])
    assert read_records(path) == [*kept, FULL]


@pytest.mark.parametrize("line", ["", "null", "7", "[]", '{"dataset": "d"}', '{"colour": 1}'])
def test_a_line_that_is_no_record_is_skipped(tmp_path: Path, line: str) -> None:
    append_records(tmp_path / "r.jsonl", [record()])
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write(line + "\n")
    append_records(tmp_path / "r.jsonl", [FULL])
    assert read_records(tmp_path / "r.jsonl") == [record(), FULL]


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0c", "\r", "\n"])
def test_names_may_hold_what_some_take_for_the_end_of_a_line(
    tmp_path: Path, separator: str
) -> None:
    odd = record(domain=f"a{separator}b")
    append_records(tmp_path / "r.jsonl", [odd, FULL])
    assert read_records(tmp_path / "r.jsonl") == [odd, FULL]


def test_only_what_a_result_needs_must_be_given() -> None:
    with pytest.raises(TypeError, match="metrics"):
        Record(dataset="d", model="m", pretrained="", task="t")
    assert record().role == "student"
    assert record().extra == {}
