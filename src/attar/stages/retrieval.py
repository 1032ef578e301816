"""Few-shot classification without training: a few images of new classes become keys."""

from pathlib import Path
from typing import Any

import numpy as np

from attar.data.class_splits import relabel
from attar.data.splits import Splits
from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.evaluation.evidence import ALL_DOMAINS
from attar.evaluation.features import features_of
from attar.evaluation.few_shot import augmented_keys, tip_adapter_logits
from attar.evaluation.models import EvaluatedModel, from_teacher
from attar.evaluation.zero_shot import classification_metrics
from attar.records import Record
from attar.run import RunConfig
from attar.stages.embedding import Knowledge
from attar.stages.measuring import with_own_classes
from attar.stages.retrieval_config import RetrievalConfig
from attar.teachers.registry import load_teacher

TASK = "few_shot_retrieval"


def retrieve(
    model: EvaluatedModel,
    splits: Splits,
    knowledge: Knowledge,
    config: RunConfig,
    asked: RetrievalConfig,
    out: Path,
) -> list[Record]:
    """Classify the unseen classes' other images with and without the keys; nothing is trained.

    Args:
        model: the student.
        splits: with few-shot images; the images to classify are in `unseen_classes`.
        knowledge: what the teacher said of the run's classes.
        config: the run's.
        asked: see `RetrievalConfig`.
        out: folder for the features of the images.

    Raises:
        UsageError: no few-shot images, a plain classifier, or teacher's keys without a teacher.
    """
    table, shots = splits.unseen_classes, splits.source.few_shot
    if not len(shots) or not len(table):
        raise UsageError("retrieval needs few-shot images and others of the same unseen classes")
    if model.head == "classes":
        raise UsageError("a plain classifier has no joint space: retrieval needs a student in one")
    of_unseen = with_own_classes(model, table.class_names).class_features
    class_features: Any = of_unseen
    if class_features is None:
        class_features = knowledge.of_classes(table.class_names)
    if class_features is None:
        raise AttarError("the run knows no class features")
    queries = features_of(
        model,
        table,
        out / "features" / "retrieval-queries.safetensors",
        batch_size=config.evaluation.batch_size,
        workers=config.evaluation.workers,
    )
    keys, labels = augmented_keys(
        _key_model(model, config, asked),
        relabel(shots, table.class_names),
        views=asked.views,
        seed=config.splits.few_shot_seed or 0,
    )
    records = []
    for task, alpha in (("zeroshot_classification", 0.0), (TASK, asked.alpha)):
        logits = tip_adapter_logits(
            queries, keys, labels, class_features, alpha, asked.beta, asked.scale
        )
        measured = classification_metrics(logits, np.asarray(table.labels))
        # Retrieval's logits are no scaled cosines: how sure they are means nothing.
        measured.pop("ece")
        records.append(_record(model, table, task, measured, config, asked))
    return records


def _key_model(model: EvaluatedModel, config: RunConfig, asked: RetrievalConfig) -> EvaluatedModel:
    if asked.keys == "student":
        return model
    if config.teacher is None:
        raise UsageError(
            "the teacher's keys need the teacher, and this run has only a store: give --teacher, "
            "or use --retrieval.keys student"
        )
    return from_teacher(load_teacher(config.teacher))


def _record(
    model: EvaluatedModel,
    table: ImageTable,
    task: str,
    measured: dict[str, float],
    config: RunConfig,
    asked: RetrievalConfig,
) -> Record:
    return Record(
        dataset="+".join(path.name for path in config.data.data),
        model=model.name,
        pretrained=model.pretrained,
        task=task,
        metrics=measured,
        role=model.role,
        method=model.method,
        split="unseen_classes",
        domain=ALL_DOMAINS,
        num_images=len(table),
        extra={"num_classes": len(table.class_names), "keys": asked.keys},
    )
