"""Who is measured on a suite: each model, with whoever describes classes in its joint space."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from attar.errors import UsageError
from attar.evaluation.evidence import is_same_teacher, refuse_equal_roles
from attar.evaluation.models import BASELINE, STUDENT, EvaluatedModel, from_teacher
from attar.evaluation.predictions import file_stem
from attar.run import RunFolder
from attar.stages.embedding import asking_of, introduce, read_class_features
from attar.stages.measuring import with_own_classes
from attar.stages.opening import (
    baseline_of,
    is_bundle,
    is_ours,
    open_ours,
    refuse_other_teacher,
    rows_of,
)
from attar.store.config import EmbedConfig
from attar.store.embed import embed_texts
from attar.store.store import Store
from attar.suites.request import SuiteRequest
from attar.teachers.base import Teacher, TeacherInfo
from attar.teachers.registry import describe_teacher_spec
from attar.teachers.remote import as_remote

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """A teacher as the one who says what texts mean; each text is asked once and kept."""

    info: TeacherInfo
    store: Path
    teacher: Teacher | None
    """None where the store alone has to answer."""
    config: EmbedConfig = field(default_factory=EmbedConfig)
    """How the teacher is asked."""

    def class_features(self, prompts: Sequence[Sequence[str]]) -> Tensor:
        """Return class features [C, D] of C classes with their prompts.

        Raises:
            UsageError: the store lacks a prompt and there is no teacher to ask, or it is of
                another teacher.
        """
        flat = [text for of_class in prompts for text in of_class]
        missing = self._missing(flat)
        if missing and self.teacher is None:
            raise UsageError(
                f"store {self.store} lacks {missing:,} of {len(flat):,} prompts of the suite's "
                "classes; give --teacher"
            )
        if missing and self.teacher is not None:
            embed_texts(self.teacher, flat, self.store, self.config)
        return read_class_features(Store.open(self.store), prompts)

    def _missing(self, texts: Sequence[str]) -> int:
        """Return how many texts the store lacks; all, where it is of another teacher."""
        # Asked before writing, so that a store which others use is not locked for nothing.
        if not (self.store / "store.json").is_file():
            return len(texts)
        store = Store.open(self.store)
        if not is_same_teacher(store.info.teacher.identity, self.info.identity):
            return len(texts)
        return int((~store.has_texts(texts)).sum())


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A model that is measured."""

    model: EvaluatedModel
    texts: TextSide | None
    """None for a plain classifier, which knows the classes of its training and no others."""

    def knowing(
        self, class_names: Sequence[str], prompts: Sequence[Sequence[str]]
    ) -> EvaluatedModel:
        """Return the model with the features of these classes, learnt ones where it has them."""
        own = with_own_classes(self.model, class_names)
        if own.class_features is not None or self.texts is None:
            return own
        return replace(own, class_features=self.texts.class_features(prompts).numpy())


def open_contestants(request: SuiteRequest) -> tuple[Contestant, ...]:
    """Open the student, its teacher, the baseline and every other model, in that order.

    The teacher itself is measured too, unless every answer of it would have to be paid.

    Raises:
        UsageError: a path or name that is no model, a student whose teacher is not known, or two
            models of one name.
        NotMeasurable: the teacher given is not the student's own.
    """
    asked, out = request.comparison, request.out
    for name in asked.others:
        if not is_ours(Path(name)):
            describe_teacher_spec(name)
    texts = _teacher_of(asked.run, asked.teacher, out)
    contestants = [_ours(asked.run, STUDENT, texts, out)]
    if texts is not None:
        if texts.teacher is None or as_remote(texts.teacher) is not None:
            log.warning("%s is not here itself, so it is not measured beside", texts.info.name)
        else:
            contestants.append(Contestant(model=from_teacher(texts.teacher), texts=texts))
    if (baseline := baseline_of(asked.run, asked.baseline)) is not None:
        contestants.append(_ours(baseline, BASELINE, texts, out))
    for name, row in rows_of(asked.others):
        ours = is_ours(Path(name))
        contestants.append(_ours(Path(name), row, texts, out) if ours else _other(name, out))
    refuse_equal_roles([contestant.model for contestant in contestants])
    return tuple(contestants)


def _other(name: str, out: Path) -> Contestant:
    """Open a teacher as a model of its own, which describes classes itself."""
    store = out / "stores" / file_stem(name, "texts")
    teacher, info = introduce(name, store, needed=True)
    assert teacher is not None
    assert info is not None
    texts = TextSide(info=info, store=store, teacher=teacher)
    return Contestant(model=from_teacher(teacher, role=name), texts=texts)


def _ours(path: Path, role: str, known: TextSide | None, out: Path) -> Contestant:
    """Open a run or bundle; its teacher is the one known already, or else the run's own."""
    model = open_ours(path, role)
    if model.head == "classes":
        return Contestant(model=model, texts=None)
    texts = known
    if role != STUDENT and (known is None or known.info.identity != model.teacher_identity):
        texts = _teacher_of(path, None, out) or known
    if texts is None:
        raise UsageError(f"{path} names no teacher: give --teacher to classify with it")
    refuse_other_teacher(path, model, texts.info)
    return Contestant(model=model, texts=texts)


def _teacher_of(path: Path, spec: str | None, out: Path) -> TextSide | None:
    """Find who describes classes to the students of a run: `spec`, or the run's own teacher.

    The run's own store knows some of its own teacher's answers already, and keeps the new ones.
    """
    run = RunFolder(path)
    own = None if is_bundle(path) else run.option("teacher")
    store, config = out / "store", EmbedConfig()
    if not is_bundle(path) and spec in (None, own):
        store, config = Path(run.option("store") or run.store), asking_of(run)
    teacher, info = introduce(spec or own, store, needed=False, config=config)
    if info is None:
        return None
    return TextSide(info=info, store=store, teacher=teacher, config=config)
