"""The tasks, and the driver that runs them for every model side by side.

features(model, images) -> file, then task(features) -> records. To add a task: one function
(Evidence, the teacher's Evidence or None, EvaluationData) -> records, and one entry below.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from attar.data.table import ImageTable
from attar.errors import unknown_name
from attar.evaluation.coherence import coherence
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.cost import cost
from attar.evaluation.evidence import (
    EvaluationData,
    Evidence,
    NotMeasurable,
    check_dimensions,
    class_logits,
    evaluation_data,
)
from attar.evaluation.features import features_of
from attar.evaluation.fidelity import fidelity
from attar.evaluation.models import TEACHER, EvaluatedModel
from attar.evaluation.predictions import file_stem, predictions_path, write_predictions
from attar.evaluation.zero_shot import GENERALISED, generalised_zero_shot, zero_shot
from attar.evaluation.zero_shot import TASK as ZERO_SHOT
from attar.files import atomic_path
from attar.records import Record, append_records, read_records

EvaluationTask = Callable[[Evidence, Evidence | None, EvaluationData], list[Record]]

GENERALISED_TASK = "generalised_zero_shot"
"""Only a run knows which classes are seen and unseen, so only a run can be asked for it."""

TASKS: dict[str, EvaluationTask] = {
    "zero_shot": zero_shot,
    GENERALISED_TASK: generalised_zero_shot,
    "fidelity": fidelity,
    "coherence": coherence,
    "cost": cost,
}

_RECORDED_AS = {"zero_shot": ZERO_SHOT, GENERALISED_TASK: GENERALISED}
"""What a task's records call it, where that is not its name here."""

_LOG = logging.getLogger(__name__)


def evaluate_models(
    models: Sequence[EvaluatedModel],
    table: ImageTable,
    split: str,
    class_features: NDArray[Any] | Tensor | None,
    out_dir: Path,
    dataset: str,
    config: EvaluationConfig = EvaluationConfig(),  # noqa: B008 - frozen
    *,
    class_names: Sequence[str] | None = None,
    teacher_identity: str = "",
) -> list[Record]:
    """Measure every model on the same images; return and store the records.

    Writes OUT/features/ROLE-SPLIT.safetensors, OUT/predictions/ROLE-SPLIT.parquet and
    OUT/results.jsonl, where older records of the same role, split, dataset and task are replaced.
    The model whose role is "teacher" is what the others are compared with.

    Args:
        models: the rows of the tables, each under a role of its own.
        table: the images; unlabelled ones are compared but not scored.
        split: "val", "test_id", "test_ood" or "held_out".
        class_features: [C, D] of the table's classes in the teacher's space, or None.
        out_dir: the run folder.
        dataset: the name that the records carry.
        config: see `EvaluationConfig`.
        class_names: the C classes, where an unlabelled table does not hold them.
        teacher_identity: the teacher that made `class_features`; students of another teacher are
            then not classified with them. Empty: unknown, all are.

    Raises:
        UsageError: what is asked does not fit together, or nothing can be measured at all.
    """
    tasks = [find_task(name) for name in config.tasks]
    data = evaluation_data(table, split, class_features, dataset, class_names, teacher_identity)
    check_dimensions(models, data)
    teacher: Evidence | None = None
    results: dict[str, list[Record]] = {}
    # The teacher goes first: the others are compared with it.
    for model in sorted(models, key=lambda m: m.role != TEACHER):
        evidence = _gather(model, data, out_dir, config)
        if model.role == TEACHER:
            teacher = evidence
        records = [record for task in tasks for record in task(evidence, teacher, data)]
        names = [_RECORDED_AS.get(name, name) for name in config.tasks]
        asked = [(model.role, split, dataset, name) for name in names]
        replace_records(out_dir / "results.jsonl", records, asked)
        results[model.role] = records
    ordered = [record for model in models for record in results[model.role]]
    if not ordered:
        raise NotMeasurable(
            f"nothing can be measured on the split {split!r} of {dataset}: it needs labels and "
            "class features, or a teacher to compare with"
        )
    return ordered


def replace_records(
    path: Path, records: Iterable[Record], asked: Iterable[tuple[str, str, str, str]] = ()
) -> None:
    """Write records into results.jsonl in place of those with their role, split, dataset and task.

    What was `asked` in these four and gave no record now leaves none of an earlier evaluation. The
    file is replaced as a whole: after a crash it is the old or the new one.
    """
    new = list(records)
    replaced = {*(_key(record) for record in new), *asked}
    old = read_records(path) if path.is_file() else []
    kept = [record for record in old if _key(record) not in replaced]
    if new or len(kept) < len(old):
        with atomic_path(path) as temporary:
            append_records(temporary, [*kept, *new])


def _key(record: Record) -> tuple[str, str, str, str]:
    return record.role, record.split, record.dataset, record.task


def find_task(name: str) -> EvaluationTask:
    """Return a task by name; an unknown one is a UsageError with the nearest names."""
    if name not in TASKS:
        raise unknown_name("evaluation task", name, TASKS)
    return TASKS[name]


def _gather(
    model: EvaluatedModel, data: EvaluationData, out_dir: Path, config: EvaluationConfig
) -> Evidence:
    """Return a model's features and, where it can classify, its logits; write its predictions."""
    features = features_of(
        model,
        data.table,
        out_dir / "features" / f"{file_stem(model.role, data.split)}.safetensors",
        batch_size=config.batch_size,
        workers=config.workers,
    )
    predictions = predictions_path(out_dir, model.role, data.split)
    try:
        logits = class_logits(model, features, data)
    except NotMeasurable as reason:
        _LOG.warning("%s", reason)
        # What an earlier evaluation predicted would pass for this one's.
        if config.predictions:
            predictions.unlink(missing_ok=True)
        return Evidence(model=model, features=features, logits=None)
    if config.predictions:
        write_predictions(predictions, logits, data)
    return Evidence(model=model, features=features, logits=logits)
