"""One line of results.jsonl: a measurement as numbers and names, readable without a model."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO


@dataclass(frozen=True, kw_only=True)
class Record:
    """A result under CLIP_benchmark's keys (dataset, model, pretrained, task, metrics) and ours."""

    dataset: str
    model: str
    """The architecture or teacher name, e.g. "timm/resnet18" or "pocket"."""
    pretrained: str
    """Where the weights come from: a run folder, a tag, or "none"."""
    task: str
    """"zeroshot_classification", "fidelity", …"""
    metrics: Mapping[str, float]
    role: str = "student"
    """"teacher", "student" or "baseline" (or a name given by the user): a row of the tables."""
    method: str = ""
    """The distillation method for students, empty for others."""
    split: str = "test_id"
    """"val", "test_id", "test_ood" or "held_out"."""
    domain: str = "all"
    """A domain's name, or "all" for every image of the split together."""
    num_images: int = 0
    language: str = "en"
    extra: Mapping[str, Any] = field(default_factory=dict)


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append records to a results.jsonl file, creating it when absent.

    A last line that a crash cut short is ended first, so that it takes no other with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and not _ends_a_line(file):
            file.write(b"\n")
        for record in records:
            file.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")


def _ends_a_line(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def read_records(path: Path) -> list[Record]:
    """Read a results.jsonl file; a line cut short by a crash is skipped, later lines are kept."""
    records = []
    # Not as text: a cut may go through a character, and str.splitlines() knows more line ends.
    for line in path.read_bytes().split(b"\n"):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return records
