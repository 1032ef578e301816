"""What `attar evaluate` measures: any models on any images, gathered by one door."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from attar.data.class_splits import names_in
from attar.data.classes import (
    ClassList,
    make_class_list,
    match_labels,
    normalise_name,
    read_class_list,
)
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.models import (
    BASELINE,
    EvaluatedModel,
    from_teacher,
)
from attar.evaluation.tasks import GENERALISED_TASK, find_task
from attar.files import read_json
from attar.methods.registry import METHODS
from attar.prompts import mean_class_features
from attar.run import DataConfig, RunFolder
from attar.runtime.bundle import Bundle
from attar.runtime.labels import find_features
from attar.stages.costing import teacher_of, with_cost
from attar.stages.embedding import (
    Knowledge,
    asking_of,
    check_store,
    consult,
    holds_everything,
    introduce,
    prompts_of,
)
from attar.stages.images import read_image_table
from attar.stages.measuring import EvaluationRequest, open_references, with_own_classes
from attar.stages.opening import (
    baseline_of,
    is_bundle,
    is_ours,
    open_ours,
    place_of_results,
    refuse_other_teacher,
    rows_of,
    seen_keys,
)
from attar.store.config import EmbedConfig
from attar.store.store import Store
from attar.teachers.registry import describe_teacher_spec, load_teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A student, the images, and what stands beside it."""

    run: Path
    data: DataConfig
    teacher: str | None = None
    baseline: Path | None = None
    others: tuple[str, ...] = ()
    split: str = "test_ood"
    out: Path | None = None
    config: EvaluationConfig = field(default_factory=EvaluationConfig)


def gather(asked: Comparison) -> EvaluationRequest:
    """Read the images, ask the teacher for what is missing, and open every model.

    Images that the run was trained or selected on are left out. The run's own classes and prompts
    are the default wherever the images' labels do not say otherwise; a bundle brings the features
    of its classes along and needs no teacher.

    Raises:
        UsageError: a run, bundle, class list or model that cannot be used as asked, or no image
            that the run has not seen.
    """
    student = open_ours(asked.run, "student")
    _check_names(asked)
    out = asked.out or place_of_results(asked.run) / "evaluations" / _dataset(asked)
    known = _known_classes(asked.run)
    classes = read_class_list(asked.data.classes) if asked.data.classes else None
    images = read_image_table(asked.data, classes, out, superset=True)
    if asked.split == "train":
        images = _only_training(images, asked.run)
    else:
        images = _leave_out(images, asked.run)
    if images.has_label_sets and _gives_several_labels(student):
        return _about_labels(asked, student, _under(known.names, images), out)
    own = known.fit(images.class_names, part=student.head == "classes")
    own = own and (classes is None or known.bundle is not None)
    if own:
        images = _under(known.names, images)
    prompts = _prompts(asked, images, classes, known if own else None)
    carried = _carried(known, images, own=own, alone=asked.teacher is None)
    knowledge = _ask(asked, images, [] if carried is not None else prompts, out, student)
    if knowledge is None and carried is None and student.head == "embedding":
        raise UsageError(f"{asked.run} names no teacher: give --teacher to classify with it")
    features, identity = carried, student.teacher_identity
    if knowledge is not None:
        identity = knowledge.teacher.identity
        features = knowledge.class_features if carried is None else carried
    config = with_cost(asked.config, asked.others)
    models = (
        *([] if knowledge is None else [teacher_of(knowledge.store, config)]),
        student,
        *_beside(asked, student),
        *(_other(name, row, images, prompts) for name, row in rows_of(asked.others)),
    )
    return EvaluationRequest(
        models=tuple(with_own_classes(model, images.class_names) for model in models),
        images=images,
        split=asked.split,
        class_features=features,
        teacher_identity=identity,
        out=out,
        dataset=_dataset(asked),
        config=config,
    )


def _gives_several_labels(model: EvaluatedModel) -> bool:
    method = METHODS.get(model.method)
    return method is not None and method.gives_several_labels


def _about_labels(
    asked: Comparison, student: EvaluatedModel, images: ImageTable, out: Path
) -> EvaluationRequest:
    """Ask for several labels an image; the teacher gives none and is asked nothing."""
    trained = _of_splits(RunFolder(asked.run).images, "train", "val")
    others = (_other(name, row, images, []) for name, row in rows_of(asked.others))
    return EvaluationRequest(
        models=(student, *_beside(asked, student), *others),
        images=images,
        split=asked.split,
        class_features=None,
        out=out,
        dataset=_dataset(asked),
        config=asked.config,
        seen_labels=names_in(trained),
    )


def _dataset(asked: Comparison) -> str:
    return asked.data.name


@dataclass(frozen=True, kw_only=True)
class _Known:
    """The classes that a student was made with."""

    names: tuple[str, ...] = ()
    prompts: tuple[tuple[str, ...], ...] = ()
    """[C] prompts; a bundle does not know them."""
    bundle: Bundle | None = None
    """Where their features are, when the student is a bundle."""

    def fit(self, label_names: Sequence[str], *, part: bool) -> bool:
        """Say whether images with these labels are to be sorted into these classes.

        They are when unlabelled or labelled with the same names; with `part`, or where they are of
        one class only, some of the names are enough.
        """
        known = {normalise_name(name) for name in self.names}
        found = {normalise_name(name) for name in label_names}
        if not known or not found or found == known:
            return bool(known)
        return found < known and (part or len(found) == 1)


def _known_classes(path: Path) -> _Known:
    if is_bundle(path):
        bundle = Bundle.open(path)
        return _Known(names=bundle.labels.texts, bundle=bundle)
    file = RunFolder(path).classes
    if not file.is_file():
        return _Known()
    known = read_json(file)
    return _Known(names=tuple(known["names"]), prompts=tuple(map(tuple, known["texts"])))


def _under(names: tuple[str, ...], images: ImageTable) -> ImageTable:
    """Return the images with the same labels, numbered by a list of classes that holds them all."""
    classes = ClassList(names, ((),) * len(names))
    index = match_labels(classes, images.class_names, superset=True)
    labels = tuple(index[label] if label >= 0 else -1 for label in images.labels)
    sets = tuple(tuple(sorted(index[label] for label in of)) for of in images.label_sets)
    return replace(images, labels=labels, label_sets=sets, class_names=names)


def _leave_out(images: ImageTable, path: Path) -> ImageTable:
    """Return the images that the run, or the run that a bundle lies in, did not learn from."""
    seen = seen_keys([path])
    kept = [row for row, key in enumerate(images.keys) if key not in seen]
    if not kept:
        raise UsageError(
            f"{path} was trained or selected on all {len(images):,} images; give others to --data"
        )
    if len(kept) < len(images):
        log.warning(
            "left out %s of %s images: %s was trained or selected on them",
            f"{len(images) - len(kept):,}",
            f"{len(images):,}",
            path,
        )
    return images.select(kept)


def _only_training(images: ImageTable, path: Path) -> ImageTable:
    """Return the images that the run learnt from: coherence is compared on them too."""
    trained = seen_keys([path], ("train", "few_shot"))
    if not trained:
        raise UsageError(f"{path} does not say what it was trained on: --split train needs a run")
    kept = [row for row, key in enumerate(images.keys) if key in trained]
    if not kept:
        raise UsageError(f"{path} was trained on none of these {len(images):,} images")
    return images.select(kept)


def _of_splits(file: Path, *splits: str) -> ImageTable:
    images = ImageTable.load(file)
    return images.select([row for row, split in enumerate(images.splits) if split in splits])


def _prompts(
    asked: Comparison, images: ImageTable, classes: ClassList | None, known: _Known | None
) -> list[list[str]]:
    """Return each class's prompts: as the run had them, unless other templates are asked for."""
    default, run = DataConfig.templates, RunFolder(asked.run)
    of_run = run.option("templates") if run.config.is_file() else None
    templates = asked.data.templates if asked.data.templates != default else of_run or default
    if known is not None and known.prompts and templates == (of_run or default):
        return [list(texts) for texts in known.prompts]
    return prompts_of(classes, images, templates)


def _carried(known: _Known, images: ImageTable, *, own: bool, alone: bool) -> Tensor | None:
    """Return the class features [C, D] that a bundle carries, where they are to be used.

    They are for its own classes, and `alone`, without a teacher, for any that it knows.

    Raises:
        UsageError: alone, and it does not know a class.
    """
    bundle = known.bundle
    if bundle is None or bundle.head == "classes" or not images.class_names:
        return None
    if own:
        return torch.from_numpy(bundle.labels.features)
    if not alone:
        return None
    return torch.from_numpy(find_features(bundle, make_class_list(images.class_names)).features)


def _beside(asked: Comparison, student: EvaluatedModel) -> list[EvaluatedModel]:
    """Open what the student has to beat: the baseline, and the references that its run made."""
    run, baseline = RunFolder(asked.run), baseline_of(asked.run, asked.baseline)
    models = [] if baseline is None else [open_ours(baseline, BASELINE)]
    if not run.config.is_file():
        return models
    store = Path(run.option("store") or run.store)
    whole = (store / "store.json").is_file() and run.images.is_file()
    if student.head == "classes" or not whole or not (run.path / "references").is_dir():
        return models
    train = _of_splits(run.images, "train")
    if not len(train):
        return models
    return models + open_references(run, Store.open(store), train, alone=baseline is None)


def _check_names(asked: Comparison) -> None:
    """Refuse names of tasks and models that mean nothing, before anything is read or asked."""
    for task in asked.config.tasks:
        find_task(task)
        if task == GENERALISED_TASK:
            raise UsageError(
                f"--tasks {task}: these images are ranked among the classes that are given; give "
                "--classes with seen and unseen ones, and the task zero_shot"
            )
    if asked.teacher is not None:
        describe_teacher_spec(asked.teacher)
    for name in asked.others:
        if not is_ours(Path(name)):
            describe_teacher_spec(name)


def _ask(
    asked: Comparison,
    images: ImageTable,
    prompts: list[list[str]],
    out: Path,
    student: EvaluatedModel,
) -> Knowledge | None:
    """Ask the teacher for what is missing; None when there is neither a teacher nor a store.

    The run's own store knows some of its teacher's answers already, and keeps the new ones.

    Raises:
        NotMeasurable: the teacher is not the one that the student was distilled from.
    """
    run = RunFolder(asked.run)
    is_run = run.config.is_file()
    if not is_run and asked.teacher is None:
        return None
    own = run.option("teacher") if is_run else None
    spec, store, config = asked.teacher or own, out / "store", EmbedConfig()
    if is_run and spec == own:
        store, config = Path(run.option("store") or run.store), asking_of(run)
        spec = None if holds_everything(store, images, prompts) else spec
    teacher, info = introduce(spec, store, needed=False, config=config)
    if info is None:
        return None
    refuse_other_teacher(asked.run, student, info)
    check_store(teacher, images, prompts, store, config)
    return consult(teacher, images, prompts, store, config)


def _other(name: str, row: str, images: ImageTable, prompts: list[list[str]]) -> EvaluatedModel:
    """Open a further model: a folder of ours, or a teacher with its own text side."""
    if is_ours(Path(name)):
        return open_ours(Path(name), row)
    teacher = load_teacher(name)
    flat = [text for of_class in prompts for text in of_class]
    own = None
    if flat:
        own = mean_class_features(teacher.encode_texts(flat), [len(of) for of in prompts])
    return from_teacher(teacher, role=row, class_features=own)
