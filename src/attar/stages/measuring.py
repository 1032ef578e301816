"""Teacher, student and baselines measured side by side on images that training never saw."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attar.config import to_plain
from attar.data.class_splits import relabel
from attar.data.splits import SourceSplits, Splits
from attar.data.table import ImageTable
from attar.device import pick_device
from attar.evaluation.baselines import constant_mean, fit_projection
from attar.evaluation.calibration import abstain_threshold, fit_scale
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.evidence import NotMeasurable
from attar.evaluation.features import features_of
from attar.evaluation.metrics import softmax, unit
from attar.evaluation.models import (
    BASELINE,
    STUDENT,
    EvaluatedModel,
    feature_parts,
    features_from_store,
    from_constant,
    from_store,
    from_student,
    from_trunk,
)
from attar.evaluation.tasks import GENERALISED_TASK, evaluate_models
from attar.files import write_json
from attar.methods.registry import find_method
from attar.records import Record
from attar.run import RunConfig, RunFolder
from attar.stages import class_space, several_labels
from attar.stages.embedding import Knowledge
from attar.store.store import Store
from attar.students.heads import is_one_linear
from attar.students.student import Student, load_student, save_student

log = logging.getLogger(__name__)

_FITTED_ON = 5000
"""Images that a projection is fitted on at most: more would not move it, and would take time."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What `attar evaluate` measures."""

    models: tuple[EvaluatedModel, ...]
    images: ImageTable
    split: str
    class_features: torch.Tensor | None
    """[C, D] in the teacher's space, or None: nothing is classified then, only compared."""
    teacher_identity: str = ""
    """The teacher that made the class features; empty: unknown."""
    out: Path
    dataset: str
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    seen_labels: frozenset[str] | None = None
    """For images with several labels: those that the student was trained on."""


def build_references(
    student: Student,
    source: SourceSplits,
    knowledge: Knowledge | None,
    config: RunConfig,
    run: RunFolder,
) -> None:
    """Save what costs no training: the untrained student, and one with its projection fitted.

    With `--student.projection fitted` the student itself then starts from that projection. Plain
    classifiers have no projection into the teacher's space, so nothing is done for them; nor are
    references made that could not stand beside a student with several labels an image.
    """
    fitted = config.student_config.projection == "fitted" and config.start_from is None
    shown = config.references and not find_method(config.method).gives_several_labels
    if knowledge is None or student.spec.head == "classes" or not (shown or fitted):
        return
    folder = run.path / "references"
    if not all((folder / name).is_dir() for name in ("untrained", "projection-only")):
        untrained = save_student(student, folder / "untrained")
        copy = load_student(untrained)
        if not (fitted or is_one_linear(copy.network, copy.spec.image_size)):
            log.info("%s has no one linear projection to fit: no row for it", copy.spec.name)
            return
        weight, bias = _fit(copy.to(pick_device()), source.train, knowledge, config, run)
        copy.cpu().set_projection(weight, bias)
        save_student(copy, folder / "projection-only")
    if fitted:
        student.load_state_dict(load_student(folder / "projection-only").state_dict())


def _fit(
    student: Student,
    images: ImageTable,
    knowledge: Knowledge,
    config: RunConfig,
    run: RunFolder,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a projection (weight [D, W], bias [D]) on the CPU; the student runs where it is."""
    order = np.random.default_rng(config.training.seed).permutation(len(images))[:_FITTED_ON]
    part = images.select(sorted(order.tolist()))
    trunk = features_of(
        from_trunk(student),
        part,
        run.path / "features" / "trunk-train.safetensors",
        batch_size=config.evaluation.batch_size,
        workers=config.evaluation.workers,
    )
    weight, bias = fit_projection(trunk, features_from_store(knowledge.store, part))
    return torch.from_numpy(weight), torch.from_numpy(bias)


def measure(
    splits: Splits, knowledge: Knowledge | None, config: RunConfig, run: RunFolder
) -> list[Record]:
    """Calibrate the student on source validation images, then measure every split kept out."""
    student = calibrated_student(splits.source.val, knowledge, config, run)
    models = [of_run(student, "student", config.method, run.student)]
    if knowledge is not None:
        models.insert(0, from_store(knowledge.store))
        models += _references(knowledge, splits.source, config, run)
    if config.baseline is not None:
        models.append(open_run(config.baseline, BASELINE))
    measured = Measured(models=tuple(models), knowledge=knowledge, config=config, run=run)
    return measured.all_of(splits)


def measured_tables(splits: Splits) -> dict[str, ImageTable]:
    """Return the splits that are measured and hold images: all that training did not learn from."""
    tables = {k: v for k, v in splits.tables().items() if k not in ("train", "few_shot")}
    return {name: table for name, table in tables.items() if len(table)}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The models of a run, each ready to be asked about any of its classes."""

    models: tuple[EvaluatedModel, ...]
    knowledge: Knowledge | None
    config: RunConfig
    run: RunFolder

    def all_of(self, splits: Splits) -> list[Record]:
        """Measure every split that holds images which training did not learn from."""
        if find_method(self.config.method).gives_several_labels:
            return self._labels_of(splits)
        records: list[Record] = []
        in_space = any(m.head == "embedding" for m in self.models if m.role == STUDENT)
        if "coherence" in self.config.evaluation.tasks and in_space:
            records += self.coherence_on("train", splits.source.train)
        for split, table in measured_tables(splits).items():
            records += self.on(split, table)
            if len(splits.unseen_classes) and split in ("test_id", "unseen_classes"):
                records += self.among_all(split, table)
        return records

    def on(self, split: str, table: ImageTable) -> list[Record]:
        """Measure a split whose images are ranked among the table's own classes."""
        own = tuple(t for t in self.config.evaluation.tasks if t != GENERALISED_TASK)
        if not own:
            return []
        return self._evaluate(split, table, replace(self.config.evaluation, tasks=own))

    def among_all(self, split: str, table: ImageTable) -> list[Record]:
        """Measure a split whose images are ranked among seen and unseen classes together."""
        knowledge = self.knowledge
        asked = {"zero_shot", GENERALISED_TASK} & set(self.config.evaluation.tasks)
        if knowledge is None or not asked or not table.has_labels:
            return []
        every = relabel(table, knowledge.class_names)
        config = replace(self.config.evaluation, tasks=(GENERALISED_TASK,), predictions=False)
        return self._evaluate(split, every, config)

    def _labels_of(self, splits: Splits) -> list[Record]:
        return several_labels.measure(
            self.models,
            measured_tables(splits),
            splits.seen_labels(),
            self._dataset,
            self.config.evaluation,
            self.run.path,
        )

    @property
    def _dataset(self) -> str:
        return self.config.data.name

    def coherence_on(self, split: str, table: ImageTable) -> list[Record]:
        """Measure the coherence with the teacher on images that training learnt from."""
        config = replace(self.config.evaluation, tasks=("coherence",), predictions=False)
        return self._evaluate(split, table, config)

    def _evaluate(self, split: str, table: ImageTable, config: EvaluationConfig) -> list[Record]:
        knowledge, names = self.knowledge, table.class_names
        try:
            return evaluate_models(
                [with_own_classes(model, names) for model in self.models],
                table,
                split,
                None if knowledge is None else knowledge.of_classes(names),
                self.run.path,
                self._dataset,
                config,
                teacher_identity="" if knowledge is None else knowledge.teacher.identity,
            )
        except NotMeasurable as reason:
            # A plain classifier alone can say nothing of classes that it was not trained on.
            log.warning("%s", reason)
            return []


def with_own_classes(model: EvaluatedModel, names: Sequence[str]) -> EvaluatedModel:
    """Give a student whose prompts were learnt the features of these classes under them."""
    trained = bool(model.method) and model.head == "embedding"
    if not trained or model.class_features is not None:
        return model
    learnt = class_space.learnt_features(Path(model.pretrained), names)
    return model if learnt is None else replace(model, class_features=learnt.numpy())


def _references(
    knowledge: Knowledge, source: SourceSplits, config: RunConfig, run: RunFolder
) -> list[EvaluatedModel]:
    if not config.references or not (run.path / "references").is_dir():
        return []
    return open_references(run, knowledge.store, source.train, alone=config.baseline is None)


def open_references(
    run: RunFolder, store: Store, train: ImageTable, *, alone: bool
) -> list[EvaluatedModel]:
    """Let a run's references in: its projection-only and untrained student, and the mean embedding.

    `alone` says that there is no trained baseline: the backbone with only its projection fitted
    then is the baseline. `store` knows the teacher's features of the run's images `train`.
    """
    folder = run.path / "references"
    mean = constant_mean(feature_parts(store, train))
    role = BASELINE if alone else "projection-only"
    fitted = folder / "projection-only"  # not there where the network has no place for one
    backbone = [of_run(load_student(fitted), role, fitted.name, fitted)] if fitted.is_dir() else []
    untrained = load_student(folder / "untrained")
    return [
        *backbone,
        of_run(untrained, "untrained", "untrained", folder / "untrained"),
        from_constant(mean, store.info.teacher),
    ]


def calibrated_student(
    validation: ImageTable, knowledge: Knowledge | None, config: RunConfig, run: RunFolder
) -> Student:
    """Fit the student's logit scale and abstention threshold on source validation images.

    A student with several labels an image has neither: its probabilities are its own.

    Labels are the targets where there are any, else the teacher's class probabilities. Both
    numbers are written to RUN/calibration.json and the scale into the student's own file.
    """
    student = load_student(run.student)
    classes = None if knowledge is None else knowledge.of_classes(validation.class_names)
    learnt = class_space.learnt_features(run.path, validation.class_names)
    classes = classes if learnt is None else learnt
    plain = student.spec.head == "classes"
    several = find_method(config.method).gives_several_labels
    if not len(validation) or several or (classes is None and not plain):
        return student
    class_features = None if classes is None else unit(classes)
    initial = 1.0 if plain or knowledge is None else knowledge.teacher.logit_scale
    features = features_of(
        of_run(student, "student", config.method, run.student),
        validation,
        run.path / "features" / "student-val.safetensors",
        batch_size=config.evaluation.batch_size,
        workers=config.evaluation.workers,
    )
    logits: Any = features if class_features is None or plain else unit(features) @ class_features.T
    targets = np.asarray(validation.labels)
    if not validation.has_labels and knowledge is not None and class_features is not None:
        plainly = knowledge.of_classes(validation.class_names)
        assert plainly is not None
        teacher = unit(features_from_store(knowledge.store, validation)) @ unit(plainly).T
        targets = softmax(knowledge.teacher.logit_scale * teacher)
    scale = fit_scale(logits, targets, initial)
    confidences = softmax(scale * logits).max(axis=1)
    threshold = abstain_threshold(confidences)
    write_json(
        run.path / "calibration.json",
        {
            "logit_scale": scale,
            "threshold": threshold,
            "images": len(validation),
            "split": "val",
            "class_names": validation.class_names,
        },
    )
    student.spec = replace(student.spec, logit_scale=scale)
    write_json(run.student / "attar.json", to_plain(student.spec))
    return student


def of_run(student: Student, role: str, method: str, folder: Path) -> EvaluatedModel:
    """Let a student in that lies in `folder`."""
    return from_student(
        student.to(pick_device()),
        role=role,
        method=method,
        pretrained=str(folder),
        logit_scale=student.spec.logit_scale,
    )


def open_run(path: Path, role: str) -> EvaluatedModel:
    """Let another run's student in, under the method that its configuration names."""
    return of_run(load_student(path), role, str(RunFolder(path).option("method")), path / "student")


def evaluate(asked: EvaluationRequest) -> Path:
    """Measure the given models side by side; return the results.jsonl they were added to."""
    if asked.seen_labels is not None:
        tables, place = {asked.split: asked.images}, (asked.dataset, asked.config, asked.out)
        several_labels.measure(asked.models, tables, asked.seen_labels, *place)
        return asked.out / "results.jsonl"
    evaluate_models(
        asked.models,
        asked.images,
        asked.split,
        asked.class_features,
        asked.out,
        asked.dataset,
        asked.config,
        teacher_identity=asked.teacher_identity,
    )
    return asked.out / "results.jsonl"
