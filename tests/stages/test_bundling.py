"""What a bundle says of its origin: only what holds for the student and the classes in it."""

import shutil
from dataclasses import replace
from pathlib import Path

from tiny_runs import CLASSES, distil

from attar.files import read_json, write_json
from attar.run import RunFolder
from attar.stages.bundling import facts_of
from attar.store.store import Store
from attar.students.student import load_student


def test_the_threshold_belongs_to_the_runs_own_classes(run: Path) -> None:
    calibrated = read_json(run / "calibration.json")["threshold"]
    assert calibrated > 0
    spec = load_student(run).spec
    assert facts_of(RunFolder(run), spec, CLASSES[::-1]).threshold == calibrated
    assert facts_of(RunFolder(run), spec, ("boat", "tree")).threshold == 0
    assert (
        facts_of(RunFolder(run), spec, CLASSES).teacher
        == Store.open(run / "store").info.teacher.name
    )


def test_a_threshold_of_seen_classes_is_not_that_of_all(run: Path, tmp_path: Path) -> None:
    copied = RunFolder(shutil.copytree(run, tmp_path / "run"))
    calibration = read_json(copied.path / "calibration.json")
    assert calibration["class_names"] == list(CLASSES)
    seen = {**calibration, "class_names": CLASSES[:2]}
    write_json(copied.path / "calibration.json", seen)
    spec = load_student(run).spec
    assert facts_of(copied, spec, CLASSES).threshold == 0
    assert facts_of(copied, spec, CLASSES[:2]).threshold == calibration["threshold"]
    older = {k: v for k, v in calibration.items() if k != "class_names"}
    write_json(copied.path / "calibration.json", older)
    assert facts_of(copied, spec, CLASSES).threshold == calibration["threshold"]


def test_a_licence_is_that_of_the_students_own_teacher(run: Path, tmp_path: Path) -> None:
    copied = RunFolder(shutil.copytree(run, tmp_path / "run"))
    _restrict(copied.path / "store")
    spec = load_student(run).spec
    assert facts_of(copied, spec, CLASSES).licence == "for research only"
    other = replace(spec, teacher_identity="0" * 64)
    assert facts_of(copied, other, CLASSES).licence is None


def test_a_teacher_that_only_stood_beside_a_plain_classifier_is_none_of_it(
    root: Path, run: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(run / "store", tmp_path / "store")
    _restrict(store)
    plain = distil(root, "taught-beside", method="erm", store=store, teacher=None)
    facts = facts_of(RunFolder(plain), load_student(plain).spec, CLASSES)
    assert (facts.teacher, facts.licence) == ("", None)


def _restrict(store: Path) -> None:
    described = read_json(store / "store.json")
    described["teacher"]["licence"] = "for research only"
    write_json(store / "store.json", described)
