"""Tables from the records of a grid of unseen classes: accuracy, fidelity and coherence."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attar.bench.markdown import NOTHING, markdown, mean_text, write_results
from attar.records import Record
from attar.stages.snapshots import ROLE as AVERAGED_ROLE

TEACHER = "teacher"
METRIC = "mean_per_class_recall"
_ZERO_SHOT = "zeroshot_classification"
_GENERALISED = "generalised_zeroshot_classification"
_AGREEMENT = "agreement"
_ECE = "ece"
_COHERENCE = (
    ("relative_coherence", "M_rel ↑", 1.0),
    ("neighborhood_overlap@5", "M_neigh, k=5 ↑", 1.0),
    ("alignment_inversions@3", "M_vlalign, k=3 ↓", 1.0),
)
_SPLIT_NAMES = {
    "test_id": "seen classes",
    "held_out": "seen classes, unseen domain",
    "unseen_classes": "unseen classes",
}

_AVERAGED = ", mean of the last epochs"

Column = tuple[str, str, str]
"""(task, split, domain)."""


def write_class_tables(
    records: Sequence[Record], folder: Path, rows: Sequence[str], facts: Mapping[str, Any]
) -> Path:
    """Write results.jsonl and table.md, both whole or not at all; return the table's path."""
    noted = ", ".join(f"{name}: {value}" for name, value in facts.items())
    parts = [
        accuracy_table(records, rows),
        f"Mean per-class accuracy in % ({noted}). Unseen classes are ranked among unseen classes "
        "alone, except in the columns “among all”. Rows “mean of the last epochs” average the "
        "results of several students; the others are of one.",
        fidelity_table(records, rows),
        "Agreement with the teacher's answers and calibration error (ECE) in %; seconds of "
        "training on the machine of the run.",
        coherence_table(records, rows),
    ]
    return write_results(records, folder, "\n\n".join(parts) + "\n")


def accuracy_table(records: Iterable[Record], rows: Sequence[str]) -> str:
    """Return Markdown: for every split and, of unseen classes, every domain, the accuracy in %."""
    records = list(records)
    found: dict[str, dict[Column, list[float]]] = defaultdict(lambda: defaultdict(list))
    chance: dict[Column, float] = {}
    teachers = dict.fromkeys(r.model for r in records if _row_of(r) == TEACHER)
    for record in records:
        row = _row_of(record)
        if row is None or METRIC not in record.metrics or record.split not in _SPLIT_NAMES:
            continue
        column = (record.task, record.split, record.domain)
        if column[0] == _GENERALISED and record.domain != "all":
            continue
        if record.split != "unseen_classes" and record.domain != "all":
            continue
        if row == TEACHER and len(teachers) > 1:
            row = f"{TEACHER} {record.model}"
        found[row][column].append(100 * record.metrics[METRIC])
        chance[column] = 100 / record.extra["num_classes"]
    columns = sorted({c for row in found.values() for c in row}, key=_column_order)
    head = ["", *(_column_name(c) for c in columns)]
    body = [["chance", *(f"{chance[c]:.1f}" for c in columns)]]
    asked = [TEACHER, *(f"{TEACHER} {model}" for model in teachers)]
    averaged = [name for one in rows for name in (one, f"{one}{_AVERAGED}")]
    for row in (*asked, *averaged):
        if row in found:
            texts = [mean_text(found[row].get(c, []), spread=row not in asked) for c in columns]
            body.append([row, *texts])
    return markdown(head, body)


def fidelity_table(records: Iterable[Record], rows: Sequence[str]) -> str:
    """Return Markdown: on each split how often a student answers as the teacher does and how far
    its confidence is from its accuracy, and what its training took."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    seconds: dict[str, dict[int, float]] = defaultdict(dict)
    for record in records:
        if record.role != "student" or record.domain != "all" or record.split not in _SPLIT_NAMES:
            continue
        row = str(record.extra["row"])
        if record.task != _GENERALISED:
            for metric in (_AGREEMENT, _ECE):
                if metric in record.metrics:
                    found[row, metric, record.split].append(100 * record.metrics[metric])
        if "training_seconds" in record.extra:
            seconds[row][record.extra["seed"]] = record.extra["training_seconds"]
    kinds = [(metric, split) for metric in (_AGREEMENT, _ECE) for split in _SPLIT_NAMES]
    kinds = [kind for kind in kinds if any((row, *kind) in found for row in rows)]
    titles = {_AGREEMENT: "agreement", _ECE: "ECE"}
    head = ["", *(f"{titles[metric]}: {_SPLIT_NAMES[split]}" for metric, split in kinds), "seconds"]
    body = [
        [
            row,
            *(mean_text(found.get((row, *kind), [])) for kind in kinds),
            f"{statistics.fmean(seconds[row].values()):.0f}" if seconds[row] else NOTHING,
        ]
        for row in rows
    ]
    return markdown(head, body)


def coherence_table(records: Iterable[Record], rows: Sequence[str]) -> str:
    """Return Markdown: the paper's three metrics on training images and on unseen classes."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for record in records:
        if record.task == "coherence" and record.domain == "all" and record.role == "student":
            for metric, _, _ in _COHERENCE:
                if metric in record.metrics:
                    key = (record.extra["row"], metric, record.split)
                    found[key].append(record.metrics[metric])
    splits = ("train", "unseen_classes")
    head = ["train / unseen classes", *(title for _, title, _ in _COHERENCE)]
    body = []
    for row in rows:
        values = [
            [_number(found.get((row, metric, split), [])) for split in splits]
            for metric, _, _ in _COHERENCE
        ]
        if any(text != NOTHING for pair in values for text in pair):
            body.append([row, *(" / ".join(pair) for pair in values)])
    return markdown(head, body)


def _row_of(record: Record) -> str | None:
    if record.role == "teacher":
        # With descriptions the teacher reads other texts: only the plain one is the teacher row.
        return None if "descriptions" in record.extra["row"] else TEACHER
    name = str(record.extra["row"])
    return {"student": name, AVERAGED_ROLE: f"{name}{_AVERAGED}"}.get(record.role)


def _column_order(column: Column) -> tuple[int, int, bool, str]:
    task, split, domain = column
    return (task == _GENERALISED, list(_SPLIT_NAMES).index(split), domain != "all", domain)


def _column_name(column: Column) -> str:
    task, split, domain = column
    name = _SPLIT_NAMES[split] + ("" if domain == "all" else f": {domain}")
    return f"{name}, among all" if task == _GENERALISED else name


def _number(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.3f}" if values else NOTHING
