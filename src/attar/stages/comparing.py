"""What `attar evaluate` measures: any models on any images, gathered by one door."""

from dataclasses import dataclass, field
from pathlib import Path

from attar.data.classes import read_class_list
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.models import EvaluatedModel, from_store, from_teacher, open_model
from attar.evaluation.tasks import find_task
from attar.prompts import mean_class_features
from attar.run import DataConfig, RunFolder
from attar.stages.embedding import (
    Knowledge,
    check_store,
    consult,
    holds_everything,
    introduce,
    prompts_of,
)
from attar.stages.images import read_image_table
from attar.stages.measuring import EvaluationRequest, open_run
from attar.store.config import EmbedConfig
from attar.teachers.registry import describe_teacher_spec, load_teacher


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

    Raises:
        UsageError: a run, bundle, class list or model that cannot be used as asked.
    """
    student = _open(asked.run, "student")
    baselines = [] if asked.baseline is None else [_open(asked.baseline, "baseline")]
    _check_names(asked)
    out = asked.out or asked.run / "evaluations" / "+".join(p.name for p in asked.data.data)
    classes = read_class_list(asked.data.classes) if asked.data.classes else None
    images = read_image_table(asked.data, classes, out, superset=True)
    prompts = prompts_of(classes, images, asked.data.templates)
    knowledge = _ask(asked, images, prompts, out)
    if knowledge is None and student.head == "embedding":
        raise UsageError(f"{asked.run} names no teacher: give --teacher to classify with it")
    teachers = [] if knowledge is None else [from_store(knowledge.store)]
    others = [_other(name, images, prompts) for name in asked.others]
    return EvaluationRequest(
        models=(*teachers, student, *baselines, *others),
        images=images,
        split=asked.split,
        class_features=None if knowledge is None else knowledge.class_features,
        out=out,
        dataset="+".join(path.name for path in asked.data.data),
        config=asked.config,
    )


def _check_names(asked: Comparison) -> None:
    """Refuse names of tasks and models that mean nothing, before anything is read or asked."""
    for task in asked.config.tasks:
        find_task(task)
    if asked.teacher is not None:
        describe_teacher_spec(asked.teacher)
    for name in asked.others:
        if not _is_ours(Path(name)):
            describe_teacher_spec(name)


def _ask(
    asked: Comparison, images: ImageTable, prompts: list[list[str]], out: Path
) -> Knowledge | None:
    """Ask the teacher for what is missing; None when there is neither a teacher nor a store.

    The run's own store knows some of its teacher's answers already, and keeps the new ones.
    """
    run = RunFolder(asked.run)
    is_run = run.config.is_file()
    own = run.option("teacher") if is_run else None
    spec, store = asked.teacher or own, out / "store"
    if is_run and spec == own:
        store = Path(run.option("store") or run.store)
        spec = None if holds_everything(store, images, prompts) else spec
    teacher, info = introduce(spec, store, needed=False)
    if info is None:
        return None
    check_store(teacher, images, prompts, store, EmbedConfig())
    return consult(teacher, images, prompts, store, EmbedConfig())


def _is_ours(path: Path) -> bool:
    return (path / "bundle.json").is_file() or (path / "config.yaml").is_file()


def _open(path: Path, role: str) -> EvaluatedModel:
    if (path / "bundle.json").is_file():
        return open_model(path, role=role)
    return open_run(path, role)


def _other(name: str, images: ImageTable, prompts: list[list[str]]) -> EvaluatedModel:
    """Open a further model: a folder of ours, or a teacher with its own text side."""
    path = Path(name)
    if _is_ours(path):
        return _open(path, path.name)
    teacher = load_teacher(name)
    flat = [text for of_class in prompts for text in of_class]
    own = None
    if flat:
        own = mean_class_features(teacher.encode_texts(flat), [len(of) for of in prompts])
    return from_teacher(teacher, role=name, class_features=own)
