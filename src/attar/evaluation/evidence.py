"""What a task works on: the images, and what one model said of them. No model is needed here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.metrics import Floats, as_array, unit
from attar.evaluation.models import EvaluatedModel, Features
from attar.records import Record
from attar.store.layout import IMPORTED

ALL_DOMAINS = "all"


class NotMeasurable(UsageError):
    """A model cannot answer the question that is asked of it; the others still can."""


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The images of one split and the classes they are sorted into."""

    table: ImageTable
    dataset: str
    split: str
    class_names: tuple[str, ...]
    class_features: Features | None
    """[C, D] in the teacher's space, or None: nothing is classified then, only compared."""
    teacher_identity: str = ""
    """The teacher that made the class features (`TeacherInfo.identity`); empty: unknown."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N] index into `class_names`, -1 for none."""
        return np.asarray(self.table.labels, dtype=np.int64)

    def domains(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield "all", then every domain that has images, each with its mask over images [N]."""
        yield ALL_DOMAINS, np.ones(len(self.table), dtype=bool)
        index = np.asarray(self.table.domains, dtype=np.int64)
        for number, name in enumerate(self.table.domain_names):
            if (index == number).any():
                yield name, index == number


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One model's answers to the images of an `EvaluationData`."""

    model: EvaluatedModel
    features: Features
    """[N, D], or the logits [N, C] of a plain classifier in its own order of classes."""
    logits: Floats | None
    """[N, C] scaled and in the data's order of classes; None where nothing can be classified."""


def evaluation_data(
    table: ImageTable,
    split: str,
    class_features: NDArray[Any] | Tensor | None,
    dataset: str,
    class_names: Sequence[str] | None = None,
    teacher_identity: str = "",
) -> EvaluationData:
    """Check that images, labels and classes belong together.

    `class_names` default to the table's; an unlabelled table may lack them.

    Raises:
        UsageError: no images, or classes that do not belong to the labels or the class features.
    """
    if not len(table):
        raise UsageError(f"the split {split!r} of {dataset} holds no images; nothing to evaluate")
    names = tuple(table.class_names if class_names is None else class_names)
    if table.has_labels and names != table.class_names:
        raise UsageError(
            f"{dataset} is labelled with the {len(table.class_names)} classes of its folders or "
            f"manifest, but {len(names)} others are to be evaluated; give the class list when the "
            "images are read"
        )
    features = None if class_features is None else as_array(class_features).astype(np.float32)
    if features is not None and len(features) != len(names):
        raise UsageError(
            f"{len(features)} class features do not fit the {len(names)} classes of {dataset}"
        )
    return EvaluationData(
        table=table,
        dataset=dataset,
        split=split,
        class_names=names,
        class_features=features,
        teacher_identity=teacher_identity,
    )


def is_same_teacher(one: str, other: str) -> bool:
    """Say whether two `TeacherInfo.identity` may mean one teacher.

    An empty one is unknown, and that of imported embeddings names their files, not the teacher:
    both go with any.
    """
    unknown = any(not i or i.startswith(IMPORTED) for i in (one, other))
    return unknown or one == other


def class_logits(model: EvaluatedModel, features: Features, data: EvaluationData) -> Floats:
    """Return logits [N, C]: logit_scale · cos(features, class_features), or a classifier's own.

    Raises:
        NotMeasurable: no class features, those of another teacher than the model's, or a plain
            classifier that does not know all of the classes.
    """
    if model.head == "classes":
        position = {name: index for index, name in enumerate(model.class_names)}
        if not set(data.class_names) <= set(position):
            raise NotMeasurable(
                f"{model.role} ({model.name}) is a plain classifier of {len(position)} classes "
                f"and cannot name the {len(data.class_names)} of {data.dataset}"
            )
        columns = [position[name] for name in data.class_names]
        return model.logit_scale * features[:, columns].astype(np.float64)
    own = data.class_features if model.class_features is None else model.class_features
    if own is None:
        raise NotMeasurable(
            f"{model.role} ({model.name}) classifies nothing: there are no class features; "
            "give --classes FILE"
        )
    if not _is_comparable(model, data):
        raise NotMeasurable(
            f"{model.role} ({model.name}) classifies nothing: it lives in the space of teacher "
            f"{model.teacher_identity[:12]}, the class features are of teacher "
            f"{data.teacher_identity[:12]}; compare it with its own --teacher"
        )
    return np.asarray(model.logit_scale * unit(features) @ unit(own).T)


def _is_comparable(model: EvaluatedModel, data: EvaluationData) -> bool:
    """Say whether the class features that the model is compared with are of its own teacher."""
    if model.class_features is not None or data.class_features is None:
        return True
    return is_same_teacher(model.teacher_identity, data.teacher_identity)


def refuse_equal_roles(models: Sequence[EvaluatedModel]) -> None:
    """Refuse two models that would fill the same row of the tables."""
    roles = [model.role for model in models]
    for role in roles:
        if roles.count(role) > 1:
            raise UsageError(f"two models have the role {role!r}; name each row differently")


def check_dimensions(models: Sequence[EvaluatedModel], data: EvaluationData) -> None:
    """Refuse, before anything is computed, class features that a model cannot be compared with.

    Raises:
        UsageError: rows or widths differ, or two models would fill the same row of the tables.
    """
    refuse_equal_roles(models)
    for model in models:
        own = data.class_features if model.class_features is None else model.class_features
        if model.head == "classes" or own is None or not _is_comparable(model, data):
            continue
        if own.shape != (len(data.class_names), model.dim):
            raise UsageError(
                f"{model.role} ({model.name}) needs class features [{len(data.class_names)}, "
                f"{model.dim}] but was given {list(own.shape)}; they belong to another teacher or "
                "class list"
            )


def make_record(
    model: EvaluatedModel,
    data: EvaluationData,
    task: str,
    *,
    domain: str,
    num_images: int,
    metrics: dict[str, float],
    extra: Mapping[str, Any] | None = None,
) -> Record:
    """Return one line of results.jsonl; `extra` says how its numbers came to be."""
    return Record(
        dataset=data.dataset,
        model=model.name,
        pretrained=model.pretrained,
        task=task,
        metrics=metrics,
        role=model.role,
        method=model.method,
        split=data.split,
        domain=domain,
        num_images=num_images,
        extra={
            "num_classes": len(data.class_names),
            "logit_scale": model.logit_scale,
            **(extra or {}),
        },
    )
