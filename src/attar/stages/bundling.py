"""From a run to the bundle that goes on the device."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.data.classes import ClassList, read_class_list
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.export.bundle import check_out, export_bundle
from attar.export.config import BundleFacts, ExportConfig
from attar.export.quantise import SourceImages, check_images
from attar.files import read_json
from attar.methods.registry import find_method
from attar.records import read_records
from attar.run import RunFolder
from attar.runtime.bundle import MANIFEST, MODEL_INT8
from attar.stages import class_space
from attar.stages.request import no_bundle
from attar.store.store import Store
from attar.students.student import StudentSpec, load_student

log = logging.getLogger(__name__)

Vocabulary = tuple[Sequence[str], NDArray[Any]]


def export(run_dir: Path, out: Path, config: ExportConfig, classes: Path | None = None) -> Path:
    """Export a run's student with its classes, or with others, and prove parity on its images.

    An int8 model that fails its gate is left out with a warning, and the bundle is whole.

    Raises:
        UsageError: the run is not finished, or the classes do not fit the student.
        AttarError: the exported model does not compute what the student computes.
    """
    run = finished_run(run_dir)
    method = find_method(str(run.option("method")))
    if method.gives_several_labels:
        raise UsageError(f"{run_dir}: {no_bundle(method)}")
    student = load_student(run_dir)
    check_out(out, student, config)
    asked = read_class_list(classes) if classes else None
    if student.spec.head == "classes":
        if asked is not None or config.vocabulary is not None:
            raise UsageError(f"{run_dir} is a plain classifier: its classes cannot be changed")
        names, features = student.spec.class_names, None
    else:
        names, tensor = class_space.features_to_export(run, asked)
        features = tensor.numpy()
    table = ImageTable.load(run.images)
    export_bundle(
        run_dir,
        out,
        class_features=features,
        class_names=names,
        sample_images=table.paths[-config.parity_images :],
        config=config,
        extras=facts_of(run, student.spec, names),
        vocabulary=_vocabulary(run, config.vocabulary),
        source_images=check_images(images_for_int8(table, names)) if config.int8 else None,
    )
    why = int8_refusal(out)
    if why:
        log.warning("%s was not written: %s; %s holds the fp32 model alone", MODEL_INT8, why, out)
    return out


def int8_refusal(bundle: Path) -> str:
    """Return why a bundle that was to hold an int8 model holds none, or nothing."""
    reason: str = read_json(bundle / MANIFEST).get("int8", {}).get("reason", "")
    return reason


def images_for_int8(table: ImageTable, class_names: Sequence[str]) -> SourceImages:
    """Return a run's source images for these classes, in the order of their checksums.

    So the first ones are a draw that depends neither on names nor on order.
    """
    place = {name: index for index, name in enumerate(class_names)}
    rows = sorted(range(len(table)), key=lambda row: table.keys[row])
    validation = [row for row in rows if table.splits[row] == "val"]
    names = (*table.class_names, "")  # -1, no label, is the last
    return SourceImages(
        training=[Path(table.paths[r]) for r in rows if table.splits[r] in ("train", "few_shot")],
        validation=[Path(table.paths[row]) for row in validation],
        labels=[place.get(names[table.labels[row]], -1) for row in validation],
    )


def finished_run(path: Path) -> RunFolder:
    """Return the run at `path`, whose student is what it will stay.

    Raises:
        UsageError: it is no run, or not finished.
    """
    run = RunFolder(path)
    run.options()  # refuses what is no run
    if not run.done.is_file():
        raise UsageError(
            f"{path} holds a run that is not finished; give its command again, it goes on "
            f"where it stopped ({path / 'command.txt'})"
        )
    return run


def facts_of(run: RunFolder, spec: StudentSpec, class_names: Sequence[str]) -> BundleFacts:
    """Return what a bundle of a run's student says of its origin, for these classes."""
    return BundleFacts(
        # A teacher that only stood beside the student, as beside a plain classifier, is none of it.
        teacher=spec.teacher,
        licence=_licence(run, spec),
        method=str(run.option("method")),
        logit_scale=spec.logit_scale,
        threshold=_threshold(run, class_names),
        datasets=tuple(Path(path).name for path in run.option("data")),
        metrics=read_records(run.results) if run.results.is_file() else (),
    )


def _licence(run: RunFolder, spec: StudentSpec) -> str | None:
    """Return the line about the licence of the teacher that the student was distilled from."""
    store = Path(run.option("store") or run.store)
    if not spec.teacher or not (store / "store.json").is_file():
        return None
    teacher = Store.open(store).info.teacher
    known = (spec.teacher_identity or teacher.identity, spec.teacher)
    return teacher.licence if (teacher.identity, teacher.name) == known else None


def _threshold(run: RunFolder, class_names: Sequence[str]) -> float:
    """Return the calibrated threshold; it belongs to the classes it was fitted on: else 0."""
    file = run.path / "calibration.json"
    if not file.is_file():
        return 0.0
    calibration = read_json(file)
    own = calibration.get("class_names")
    if own is None:  # a run made before they were noted: those it was calibrated on, but for unseen
        own = read_json(run.classes)["names"] if run.classes.is_file() else ()
    threshold: float = calibration["threshold"]
    return threshold if set(own) == set(class_names) else 0.0


def _vocabulary(run: RunFolder, path: Path | None) -> Vocabulary | None:
    """Encode a vocabulary of class names, each as the run's prompts would have it."""
    if path is None:
        return None
    words: ClassList = read_class_list(path)
    names, features = class_space.features_to_export(run, words)
    return names, np.asarray(features)
