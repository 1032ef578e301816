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
from attar.evaluation.metrics import Floats
from attar.evaluation.models import EvaluatedModel, Features, from_teacher
from attar.evaluation.retrieval import augmented_keys, tip_adapter_logits
from attar.evaluation.zero_shot import TASK as ZERO_SHOT
from attar.evaluation.zero_shot import classification_metrics
from attar.records import Record
from attar.run import RunConfig
from attar.stages.embedding import Knowledge, load
from attar.stages.measuring import with_own_classes
from attar.stages.retrieval_config import RetrievalConfig

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

    Classes that got no images (`further_unseen`) are ranked among themselves: no key speaks there.

    Args:
        model: the student.
        splits: with few-shot images; the images to classify are in `unseen_classes`, or where a
            manifest named it so, in `test_ood`.
        knowledge: what the teacher said of the run's classes.
        config: the run's.
        asked: see `RetrievalConfig`.
        out: folder for the features of the images.

    Raises:
        UsageError: no few-shot images, a plain classifier, or teacher's keys without a teacher.
    """
    shots = splits.source.few_shot
    split = "unseen_classes" if len(splits.unseen_classes) else "test_ood"
    table = splits.tables()[split]
    if not len(shots) or not len(table):
        raise UsageError("retrieval needs few-shot images and others of the same unseen classes")
    if model.head == "classes":
        raise UsageError("a plain classifier has no joint space: retrieval needs a student in one")
    keys, labels = augmented_keys(
        _key_model(model, config, asked),
        relabel(shots, table.class_names),
        views=asked.views,
        seed=config.splits.few_shot_seed or 0,
    )
    records = []
    for name, images in ((split, table), ("further_unseen", splits.further_unseen)):
        if not len(images):
            continue
        classes = _class_features(model, images, knowledge)
        queries = _queries(model, images, config, out / "features" / f"{name}.safetensors")
        none = tip_adapter_logits(queries, keys[:0], labels[:0], classes, scale=asked.scale)
        records.append(_record(model, images, (ZERO_SHOT, name), none, config, asked))
        if name == split:
            logits = tip_adapter_logits(
                queries, keys, labels, classes, asked.alpha, asked.beta, asked.scale
            )
            records.append(_record(model, images, (TASK, name), logits, config, asked))
    return records


def _queries(model: EvaluatedModel, images: ImageTable, config: RunConfig, path: Path) -> Features:
    return features_of(
        model,
        images,
        path,
        batch_size=config.evaluation.batch_size,
        workers=config.evaluation.workers,
    )


def _class_features(model: EvaluatedModel, images: ImageTable, knowledge: Knowledge) -> Any:
    learnt = with_own_classes(model, images.class_names).class_features
    features = knowledge.of_classes(images.class_names) if learnt is None else learnt
    if features is None:
        raise AttarError("the run knows no class features")
    return features


def _key_model(model: EvaluatedModel, config: RunConfig, asked: RetrievalConfig) -> EvaluatedModel:
    if asked.keys == "student":
        return model
    if config.teacher is None:
        raise UsageError(
            "the teacher's keys need the teacher, and this run has only a store: give --teacher, "
            "or use --retrieval.keys student"
        )
    return from_teacher(load(config.teacher, config.embed))


def _record(
    model: EvaluatedModel,
    images: ImageTable,
    task_and_split: tuple[str, str],
    logits: Floats,
    config: RunConfig,
    asked: RetrievalConfig,
) -> Record:
    measured = classification_metrics(logits, np.asarray(images.labels))
    # These logits are no scaled cosines: how sure they are means nothing.
    measured.pop("ece")
    task, split = task_and_split
    return Record(
        dataset=config.data.name,
        model=model.name,
        pretrained=model.pretrained,
        task=task,
        metrics=measured,
        role=model.role,
        method=model.method,
        split=split,
        domain=ALL_DOMAINS,
        num_images=len(images),
        extra={"num_classes": len(images.class_names), "keys": asked.keys},
    )
