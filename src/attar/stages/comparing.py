"""What `attar evaluate` measures: any models on any images, gathered by one door."""

from dataclasses import dataclass, field
from pathlib import Path

from attar.data.classes import read_class_list
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.models import EvaluatedModel, from_store, from_teacher, open_model
from attar.prompts import mean_class_features
from attar.run import DataConfig, RunFolder
from attar.stages.embedding import consult, introduce, prompts_of
from attar.stages.images import read_image_table
from attar.stages.measuring import EvaluationRequest, open_run
from attar.store.config import EmbedConfig
from attar.students.student import load_student
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
    run = RunFolder(asked.run)
    student = _open(asked.run, "student")
    out = asked.out or asked.run / "evaluations" / "+".join(p.name for p in asked.data.data)
    classes = read_class_list(asked.data.classes) if asked.data.classes else None
    images = read_image_table(asked.data, classes, out, superset=True)
    prompts = prompts_of(classes, images, asked.data.templates)
    models = [student]
    class_features = None
    own = run.option("teacher") if run.config.is_file() else None
    spec = asked.teacher or own
    if spec is not None:
        # The run's own store knows some of the answers already, and keeps the new ones.
        store = Path(run.option("store") or run.store) if spec == own else out / "store"
        teacher, _ = introduce(spec, store, needed=True)
        knowledge = consult(teacher, images, prompts, store, EmbedConfig())
        class_features = knowledge.class_features
        models.insert(0, from_store(knowledge.store))
    elif student.head == "embedding":
        raise UsageError(f"{asked.run} names no teacher: give --teacher to classify with it")
    if asked.baseline is not None:
        models.append(_open(asked.baseline, "baseline"))
    models += [_other(name, images, prompts) for name in asked.others]
    return EvaluationRequest(
        models=tuple(models),
        images=images,
        split=asked.split,
        class_features=class_features,
        out=out,
        dataset="+".join(path.name for path in asked.data.data),
        config=asked.config,
    )


def _open(path: Path, role: str) -> EvaluatedModel:
    if (path / "bundle.json").is_file():
        return open_model(path, role=role)
    load_student(path)  # names what is missing, before anything is read
    return open_run(path, role)


def _other(name: str, images: ImageTable, prompts: list[list[str]]) -> EvaluatedModel:
    """Open a further model: a folder of ours, or a teacher with its own text side."""
    path = Path(name)
    if (path / "bundle.json").is_file() or (path / "config.yaml").is_file():
        return _open(path, path.name)
    describe_teacher_spec(name)
    teacher = load_teacher(name)
    flat = [text for of_class in prompts for text in of_class]
    own = None
    if flat:
        own = mean_class_features(teacher.encode_texts(flat), [len(of) for of in prompts])
    return from_teacher(teacher, role=name, class_features=own)
