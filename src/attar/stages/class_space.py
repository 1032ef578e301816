"""The class features that a run trains with: fixed ones, or texts learnt on the way.

What is learnt leaves two files in the run: objective.safetensors holds the context vectors or the
text tower, and class_features.safetensors the features of all of the run's classes under them:
`features` [C, D], or `positive` and `negative` where each class has two. Class features that are
fixed, but made of something other than the prompts, leave the second. Evaluation and export read
it and need no teacher.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar.data.classes import ClassList
from attar.errors import UsageError
from attar.files import atomic_path, read_json
from attar.methods.base import ClassFeatures, FrozenClassFeatures, Phase
from attar.methods.dualcoop import PositiveNegativePrompts
from attar.methods.flyp import TrainedTexts
from attar.methods.prompt_learning import LearntPrompts
from attar.methods.registry import find_method
from attar.prompts import class_texts, get_templates, texts_behind_context
from attar.run import RunFolder
from attar.stages import class_embeddings
from attar.stages.embedding import Knowledge, features_for_classes
from attar.stages.job import Job
from attar.teachers.base import Teacher
from attar.teachers.registry import load_teacher
from attar.teachers.text_embedding import prompt_encoder

_FILE = "class_features.safetensors"
_PAIR = ("positive", "negative")
Prompts = LearntPrompts | PositiveNegativePrompts


def context_length(job: Job) -> int:
    """Return how many prompt vectors the method learns; 0: its prompts are fixed."""
    method, options = job.recipe
    return method.context(options)


def learns(job: Job) -> bool:
    """Say whether the class features are learnt with the student."""
    return bool(context_length(job)) or job.recipe[0].trains_texts


def check(job: Job) -> None:
    """Refuse texts to learn without the text tower that gradients must cross.

    Raises:
        UsageError: no teacher is given, or one whose tower cannot be used so.
    """
    if not learns(job):
        return
    if job.teacher is None:
        raise UsageError(
            "texts are learnt through the teacher's text tower, and a store holds only what it "
            "said: give --teacher"
        )
    if context_length(job):
        prompt_encoder(job.teacher)
    elif job.teacher.towers is None:
        raise UsageError(
            f"method {job.recipe[0].name} trains a copy of the teacher's text tower, and "
            f"{job.teacher.info.name} does not show it; give a teacher with weights of its own"
        )


def provider(job: Job, knowledge: Knowledge | None) -> ClassFeatures | None:
    """Return what gives the features of the classes that are trained on, or None without any."""
    names = job.source.train.class_names
    length = context_length(job)
    if length and job.teacher is not None:
        texts = [job.plain_text_of(name) for name in names]
        prompts = _draw(job, job.teacher, texts)
        _take_learnt(prompts, "class_features", job.config.start_from)
        return prompts
    if job.recipe[0].trains_texts:
        assert job.teacher is not None  # `check` has made sure of both
        assert job.teacher.towers is not None
        tuned = TrainedTexts.copy_of(job.teacher.towers, [job.prompts_of(name) for name in names])
        _take_learnt(tuned, "class_features", job.config.start_from)
        return tuned
    if knowledge is not None and class_embeddings.choice(job) != "prompts":
        known, embeddings = class_embeddings.features(job, knowledge)
        return FrozenClassFeatures(embeddings[[known.index(name) for name in names]])
    features = None if knowledge is None else knowledge.of_classes(names)
    return None if features is None else FrozenClassFeatures(features)


def _draw(job: Job, teacher: Teacher, texts: Sequence[str]) -> Prompts:
    """Draw the context of one prompt a class, or those of two."""
    encoder, length = prompt_encoder(teacher), context_length(job)
    seed = job.config.training.seed
    if job.recipe[0].paired_prompts:
        return PositiveNegativePrompts.draw(encoder, texts, length=length, seed=seed)
    return LearntPrompts(encoder, texts, length=length, seed=seed)


def go_on_from(phases: Sequence[Phase], run: Path | None) -> None:
    """Let what objectives learn begin as another run learnt it."""
    for phase in phases:
        _take_learnt(phase.objective, phase.name, run)


def _take_learnt(module: nn.Module, prefix: str, run: Path | None) -> None:
    """Give a module's parameters the values that a run learnt, where it learnt as many."""
    path = None if run is None else run / "objective.safetensors"
    known = load_file(path) if path is not None and path.is_file() else {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            learnt = known.get(f"{prefix}.{name}")
            if learnt is not None and learnt.shape == parameter.shape:
                parameter.copy_(learnt)


def save_learnt(
    trained: ClassFeatures, job: Job, run: RunFolder, knowledge: Knowledge | None
) -> None:
    """Write the features of the run's classes where they are not those of its prompts."""
    names = job.images.class_names
    if learns(job):
        # A run that was killed after its training comes here with texts that were drawn anew.
        _take_learnt(trained, "class_features", run.path)
        with torch.no_grad():
            features = _for_classes(trained, job, names)().cpu()
    elif knowledge is not None and class_embeddings.choice(job) != "prompts":
        names, features = class_embeddings.features(job, knowledge)
    else:
        return
    parts = {"features": features}
    if job.recipe[0].paired_prompts:
        parts = dict(zip(_PAIR, features.chunk(2), strict=True))
    tensors = {name: part.clone() for name, part in parts.items()}
    with atomic_path(run.path / _FILE) as temporary:
        save_file(tensors, temporary, {"names": "\n".join(names)})


def _for_classes(trained: ClassFeatures, job: Job, names: Sequence[str]) -> ClassFeatures:
    """Return what was learnt, put to other classes of the run."""
    if isinstance(trained, TrainedTexts):
        return trained.for_classes([job.prompts_of(name) for name in names])
    assert isinstance(trained, LearntPrompts | PositiveNegativePrompts)
    return trained.for_classes([job.plain_text_of(name) for name in names])


def learnt_features(run: Path, names: Sequence[str]) -> Tensor | None:
    """Return the learnt class features [C, D] of these classes; None where the run has none.

    `run` is a run's folder or that of the student in it.
    """
    known, tensors = _read_learnt(run)
    position = {name: i for i, name in enumerate(known)}
    if "features" not in tensors or any(name not in position for name in names):
        return None
    return tensors["features"][[position[name] for name in names]]


def learnt_pairs(run: Path) -> tuple[tuple[str, ...], Tensor]:
    """Return all of a run's classes and their learnt prompts [2 C, D], the positive ones first.

    Raises:
        UsageError: the run has learnt none.
    """
    names, tensors = _read_learnt(run)
    if not set(_PAIR) <= tensors.keys():
        raise UsageError(f"{run} has learnt no positive and negative prompts")
    return names, torch.cat([tensors[name] for name in _PAIR])


def _read_learnt(run: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Return the class names and tensors of a run's file; nothing where there is none."""
    path = next((p for p in (run / _FILE, run.parent / _FILE) if p.is_file()), None)
    if path is None:
        return (), {}
    with safe_open(path, "pt") as file:
        names = tuple(file.metadata()["names"].split("\n"))
        return names, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def features_to_export(
    run: RunFolder, classes: ClassList | None, teacher_spec: str | None = None
) -> tuple[tuple[str, ...], Tensor]:
    """Return names and class features [C, D] for a run's student: its own classes, or others.

    A run that learnt prompts uses them for any classes; others then pass the teacher's text tower.

    Raises:
        UsageError: as `features_for_classes`, or learnt prompts for other classes and no teacher.
    """
    if not (run.path / _FILE).is_file():
        return features_for_classes(run, classes, teacher_spec)
    if classes is None:
        names = tuple(read_json(run.classes)["names"])
        features = learnt_features(run.path, names)
        if features is None:
            raise UsageError(
                f"{run.path} learnt what stands for the classes it was trained on, and its images "
                "show others too: give those to be told apart with --classes FILE"
            )
        return names, features
    path = run.path / "objective.safetensors"
    learnt = load_file(path) if path.is_file() else {}
    if not any(name.startswith("class_features.") for name in learnt):
        return features_for_classes(run, classes, teacher_spec)
    spec = teacher_spec or run.option("teacher")
    if spec is None:
        raise UsageError(f"{run.path} learnt its texts: other classes need --teacher")
    return classes.names, _under_learnt(run, load_teacher(spec), classes)


def _under_learnt(run: RunFolder, teacher: Teacher, classes: ClassList) -> Tensor:
    """Return the features [C, D] of other classes under what a run has learnt of texts."""
    prompts: ClassFeatures
    if find_method(str(run.option("method"))).trains_texts:
        assert teacher.towers is not None
        texts = class_texts(classes, get_templates(run.option("templates") or "photo"))
        prompts = TrainedTexts.copy_of(teacher.towers, texts)
    else:
        context = load_file(run.path / "objective.safetensors")["class_features.context"]
        texts_behind = texts_behind_context(classes)
        prompts = LearntPrompts(prompt_encoder(teacher), texts_behind, length=len(context))
    _take_learnt(prompts, "class_features", run.path)
    with torch.no_grad():
        return prompts().cpu()
