"""Test-domain model selection: an upper bound, computed when training has long ended.

Training keeps students at the ends of its last epochs (`--training.snapshots N`), and every run
measures them once it is over. The oracle takes, in each cell, the one with the best accuracy on the
held-out domain. That is no result of the protocol: it says what the choice of a checkpoint by
source validation costs at most. The trainer has no part in it, and no image of the held-out domain.
"""

from pathlib import Path
from typing import Any

from attar.bench.cells import Cell
from attar.errors import UsageError
from attar.files import read_json, write_json
from attar.records import Record, read_records

ROLE = "oracle"
METRIC = "acc1"
_END = "end of training"


def check_snapshots(snapshots: int) -> None:
    """Refuse to choose among one checkpoint.

    Raises:
        UsageError: no snapshots are kept.
    """
    if not snapshots:
        raise UsageError(
            "--oracle chooses among saved checkpoints and none would be kept: add "
            "--training.snapshots N (the ends of the last N epochs)"
        )


def oracle_record(cell: Cell, run: Path, kept: Path) -> Record | None:
    """Return the cell's best accuracy on the held-out domain over its saved checkpoints.

    What every checkpoint scored is written to `kept`, which stands for the run folder where that is
    gone. None: there is neither.
    """
    scores = _scores(run)
    if scores:
        write_json(kept, {"held_out_acc1": {name: r.metrics[METRIC] for name, r in scores.items()}})
        images = next(iter(scores.values())).num_images
        return _record(cell, {n: r.metrics[METRIC] for n, r in scores.items()}, images)
    if not kept.is_file():
        return None
    return _record(cell, read_json(kept)["held_out_acc1"], 0)


def _record(cell: Cell, scores: dict[str, float], images: int) -> Record:
    best = max(scores, key=lambda name: scores[name])
    extra: dict[str, Any] = {**cell.facts(), "checkpoint": best, "checkpoints": len(scores)}
    return Record(
        dataset="",
        model="",
        pretrained="",
        task="zeroshot_classification",
        metrics={METRIC: scores[best]},
        role=ROLE,
        method=cell.method,
        split="held_out",
        num_images=images,
        extra=extra,
    )


def _scores(run: Path) -> dict[str, Record]:
    """Return checkpoint -> its result on the whole held-out domain; empty without snapshots."""
    places = {path.parent.name: path for path in run.glob("evaluations/snapshots/*/results.jsonl")}
    if not places:
        return {}
    places[_END] = run / "results.jsonl"
    found = {}
    for name, path in sorted(places.items()):
        for record in read_records(path):
            on_test = record.split == "held_out" and record.domain == "all"
            if on_test and record.role == "student" and METRIC in record.metrics:
                found[name] = record
    return found
