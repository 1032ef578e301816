"""Results averaged over the students kept at the ends of the last epochs (Li et al., app. B)."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from attar.data.splits import Splits
from attar.evaluation.models import STUDENT, from_store
from attar.evaluation.tasks import replace_records
from attar.records import Record
from attar.run import RunConfig, RunFolder
from attar.stages.embedding import Knowledge
from attar.stages.measuring import Measured, of_run
from attar.students.student import load_student

ROLE = "student, mean of the last epochs"


def measure_snapshots(
    splits: Splits, knowledge: Knowledge | None, config: RunConfig, run: RunFolder
) -> list[Record]:
    """Measure every student that was kept and add the mean of their metrics to the results.

    Prompts that were learnt are those of the end, and the logit scale is the final student's.
    Each record's `extra` holds how many students it is the mean of, and their deviation.
    """
    folders = sorted(path for path in run.snapshots.glob("*") if path.is_dir())
    if not config.training.snapshots or not folders:
        return []
    scale = load_student(run.student).spec.logit_scale
    found: list[Record] = []
    for folder in folders:
        student = load_student(folder)
        student.spec = replace(student.spec, logit_scale=scale)
        models = [of_run(student, STUDENT, config.method, run.student)]
        if knowledge is not None:
            models.insert(0, from_store(knowledge.store))
        # A place of its own: these features and lines of results are no part of the run's.
        place = RunFolder(run.path / "evaluations" / "snapshots" / folder.name)
        measured = Measured(models=tuple(models), knowledge=knowledge, config=config, run=place)
        found += [record for record in measured.all_of(splits) if record.role == STUDENT]
    averaged = average(found)
    replace_records(run.results, averaged)
    return averaged


def average(records: Sequence[Record]) -> list[Record]:
    """Return one record for each measurement that the given ones repeat."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        labels = str(record.extra.get("labels", ""))
        groups[record.task, record.split, record.domain, record.dataset, labels].append(record)
    return [_mean(group) for group in groups.values()]


def _mean(group: Sequence[Record]) -> Record:
    first = group[0]
    values = {name: [r.metrics[name] for r in group] for name in first.metrics}
    deviation = {k: statistics.stdev(v) if len(v) > 1 else 0.0 for k, v in values.items()}
    return replace(
        first,
        role=ROLE,
        pretrained="",
        metrics={name: statistics.fmean(v) for name, v in values.items()},
        extra={**first.extra, "students": len(group), "deviation": deviation},
    )
