"""What can stand in an evaluation, by its path: a run made by `distill`, or an exported bundle."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attar.data.table import ImageTable
from attar.evaluation.evidence import NotMeasurable, is_same_teacher
from attar.evaluation.models import EvaluatedModel, open_model
from attar.run import RunFolder
from attar.runtime.bundle import MANIFEST
from attar.stages.measuring import open_run
from attar.teachers.base import TeacherInfo

log = logging.getLogger(__name__)

SEEN = ("train", "val", "few_shot")
"""Splits of the images that a run was trained or selected on."""


def is_bundle(path: Path) -> bool:
    """Say whether the folder is a bundle."""
    return (path / MANIFEST).is_file()


def is_ours(path: Path) -> bool:
    """Say whether the folder is a run or a bundle."""
    return is_bundle(path) or RunFolder(path).config.is_file()


def rows_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return each further model with its row: a teacher as given, a folder of ours by its name.

    Folders with the same last part, such as two runs' bundles, are named from where they part.
    """
    ours = [name for name in names if is_ours(Path(name))]
    last = Counter(Path(name).name for name in ours)
    alike = {Path(name).resolve() for name in ours if last[Path(name).name] > 1}
    common = os.path.commonpath(alike) if len(alike) > 1 else None

    def row(name: str) -> str:
        path = Path(name)
        if name not in ours:
            return name
        if common is None or path.resolve() not in alike:
            return path.name
        return path.resolve().relative_to(common).as_posix()

    return [(name, row(name)) for name in names]


def place_of_results(path: Path) -> Path:
    """Return the folder that keeps results: the run's own, but nothing is added to a bundle."""
    return path.resolve().parent if is_bundle(path) else path


def seen_keys(paths: Sequence[Path], splits: Sequence[str] = SEEN) -> frozenset[str]:
    """Return the keys of all images of these splits of runs, or of the runs that bundles lie in.

    By default what they were trained or selected on; a folder without a table of images has seen
    nothing that is known.
    """
    keys: set[str] = set()
    for path in paths:
        file = RunFolder(place_of_results(path)).images
        if is_ours(path) and file.is_file():
            table = ImageTable.load(file)
            known = zip(table.keys, table.splits, strict=True)
            keys |= {key for key, split in known if split in splits}
    return frozenset(keys)


def open_ours(path: Path, role: str) -> EvaluatedModel:
    """Let the run or bundle in under a role."""
    if is_bundle(path):
        return open_model(path, role=role)
    return open_run(path, role)


def baseline_of(path: Path, given: Path | None) -> Path | None:
    """Return the baseline that was given, or else the one that the run was shown beside."""
    run = RunFolder(path)
    if given is not None or not run.config.is_file() or run.option("baseline") is None:
        return given
    baseline = Path(run.option("baseline"))
    if not baseline.is_dir():
        log.warning("%s, the run's baseline, is no longer there and is not shown", baseline)
        return None
    return baseline


def refuse_other_teacher(path: Path, student: EvaluatedModel, teacher: TeacherInfo) -> None:
    """Refuse to compare a student with texts or images of a teacher that is not its own.

    Raises:
        NotMeasurable: the teacher is not the one that the student was distilled from.
    """
    if not is_same_teacher(student.teacher_identity, teacher.identity):
        raise NotMeasurable(
            f"{path} was distilled from another teacher ({student.teacher_identity[:12]}) "
            f"than {teacher.name} ({teacher.identity[:12]}), whose features mean nothing to it; "
            "give --teacher the one it was distilled from"
        )
