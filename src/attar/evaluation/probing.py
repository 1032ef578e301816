"""Linear probes of any model on tables of images: features and labels in, records out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.data.table import ImageTable, concatenate
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.evidence import EvaluationData, NotMeasurable, make_record
from attar.evaluation.features import features_of
from attar.evaluation.linear_probe import (
    Learnt,
    Probe,
    learn_probe,
    zero_probe,
    zero_shot_probe,
)
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.evaluation.metrics import Floats, unit
from attar.evaluation.models import EvaluatedModel, Features
from attar.evaluation.predictions import file_stem
from attar.evaluation.probe_labels import (
    can_be_learnt,
    can_be_measured,
    draw_shots,
    known_rows,
    labels_of,
    measure_of,
    metrics_of,
    smallest_class,
)
from attar.records import Record

TASK = "linear_probe"

_LOG = logging.getLogger(__name__)
_LEARNT = "probe"
"""Of the feature file of the images that the probe learns from."""


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Labelled images to learn from, and those that are tested; no image is on both sides."""

    train: ImageTable
    val: ImageTable
    """Chooses the hyper-parameters where it holds images; else a part of `train` does."""
    tests: Mapping[str, EvaluationData]
    """By the name of the split; the same classes as `train`."""


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What one model's features are on all sides."""

    model: EvaluatedModel
    learnt_from: Features
    """[N, D] of `train`, then of `val`."""
    tested: Mapping[str, Features]
    start: Probe
    kind: str
    """"projected" or "trunk"."""


def task_name(shots: int | None) -> str:
    """Return the name under which records stand: "linear_probe", "linear_probe_5_shot"."""
    return TASK if shots is None else f"{TASK}_{shots}_shot"


def possible_shots(data: ProbeData, config: LinearProbeConfig) -> list[int | None]:
    """Return the numbers of shots that every class can give, and None for all images.

    Raises:
        UsageError: images that tell no classes apart, or nothing is left of what was asked.
    """
    table, labels, found = data.train, labels_of(data.train), []
    if not can_be_learnt(labels[known_rows(labels)]):
        raise UsageError(
            f"a probe needs training images that tell classes apart; these {len(table):,} do not"
        )
    for shots in config.shots:
        try:
            drawn = draw_shots(labels, table.keys, shots, config.seeds[0])
        except UsageError:
            few, count = smallest_class(labels, table.keys)
            said = (shots, table.class_names[few], count)
            _LOG.warning("%d shots are left out: %s has %d training images", *said)
            continue
        if can_be_learnt(labels[drawn]):
            found.append(shots)
        else:
            _LOG.warning("%d shots are left out: those images tell no classes apart", shots)
    if not found and not config.full:
        raise UsageError(
            f"no class of the {len(table):,} training images has the {min(config.shots)} images "
            "asked for; give fewer shots or more images"
        )
    return [*sorted(set(found)), *([None] if config.full else [])]


def probe_model(
    model: EvaluatedModel,
    data: ProbeData,
    out_dir: Path,
    config: LinearProbeConfig,
    evaluation: EvaluationConfig,
) -> list[Record]:
    """Fit a model's probes and measure them on every test split and each of its domains.

    Writes features to OUT/features; the records hold means over the seeds.

    Raises:
        NotMeasurable: the model lacks the features or the class features that are asked for.
    """
    answers = _gather(model, data, out_dir, config, evaluation)
    records = []
    for shots in possible_shots(data, config):
        seeds = config.seeds if shots is not None else config.seeds[:1]
        learnt = [_learn(answers, data, shots, seed, config) for seed in seeds]
        facts = _facts(answers, data, shots, seeds, learnt, config)
        for split, test in data.tests.items():
            logits = [one.probe.logits(_rows(answers.tested[split], answers)) for one in learnt]
            found = measure_logits(model, test, task_name(shots), logits, facts)
            for of_all in found[:1]:
                measure = measure_of(labels_of(test.table))
                score = 100 * of_all.metrics[measure]
                said = (model.role, task_name(shots), split, measure, score)
                _LOG.info("%s, %s on %s: %s %.1f %%", *said)
            records += found
    return records


def _gather(
    model: EvaluatedModel,
    data: ProbeData,
    out_dir: Path,
    config: LinearProbeConfig,
    evaluation: EvaluationConfig,
) -> _Answers:
    read, kind = _features_to_read(model, config)
    start = _start(read, kind, data, config)

    def features(table: ImageTable, split: str) -> Features:
        role = model.role if kind == "projected" else f"{model.role}.trunk"
        path = out_dir / "features" / f"{file_stem(role, split)}.safetensors"
        size, workers = evaluation.batch_size, evaluation.workers
        return features_of(read, table, path, batch_size=size, workers=workers)

    learnt_from = features(concatenate([data.train, data.val]), _LEARNT)
    return _Answers(
        model=model,
        learnt_from=learnt_from,
        tested={split: features(test.table, split) for split, test in data.tests.items()},
        start=zero_probe(len(data.train.class_names), learnt_from.shape[1])
        if start is None
        else start,
        kind=kind,
    )


def _features_to_read(
    model: EvaluatedModel, config: LinearProbeConfig
) -> tuple[EvaluatedModel, str]:
    """Return the model as one that gives the features asked for, and their kind."""
    if config.features == "projected" and model.head == "embedding":
        return model, "projected"
    if model.encode_trunk is None:
        raise NotMeasurable(
            f"{model.role} ({model.name}) gives no trunk features and is left out: only students "
            "in their run folders do"
        )
    trunk = replace(
        model, encode=model.encode_trunk, lookup=None, identity=f"{model.identity}/trunk"
    )
    return trunk, "trunk"


def _start(
    model: EvaluatedModel, kind: str, data: ProbeData, config: LinearProbeConfig
) -> Probe | None:
    """Return the zero-shot classifier to start from; None to start from zero."""
    if config.start == "zero":
        return None
    if kind == "trunk" or model.class_features is None:
        raise NotMeasurable(
            f"{model.role} ({model.name}) cannot start from text and is left out: "
            + ("its trunk lies in no joint space" if kind == "trunk" else "no class features")
        )
    return zero_shot_probe(model.class_features, model.logit_scale)


def _learn(
    answers: _Answers, data: ProbeData, shots: int | None, seed: int, config: LinearProbeConfig
) -> Learnt:
    """Learn from so many shots of the training images, or from all, validation images included."""
    labels = labels_of(concatenate([data.train, data.val]))
    validation: NDArray[np.bool_] | None = None
    rows = known_rows(labels)
    if shots is not None:
        rows = draw_shots(labels_of(data.train), data.train.keys, shots, seed)
    elif len(data.val):
        validation = rows >= len(data.train)
    return learn_probe(
        _rows(answers.learnt_from[rows], answers),
        labels[rows],
        answers.start,
        config,
        validation=validation,
        seed=seed,
        thorough=shots is not None,
    )


def _rows(features: Features, answers: _Answers) -> Floats:
    """Return what the probe reads: unit rows in the joint space, trunk features as they are."""
    return unit(features) if answers.kind == "projected" else features.astype(np.float64)


def measure_logits(
    model: EvaluatedModel,
    test: EvaluationData,
    task: str,
    logits: Sequence[Floats],
    facts: Mapping[str, Any],
) -> list[Record]:
    """Return the mean metrics over the seeds' logits [N, C], with the deviation of the main one.

    `facts` say how the probes came to be; there are none of a model that is asked as it is.
    """
    labels, records = labels_of(test.table), []
    measure = measure_of(labels)
    for domain, mask in test.domains():
        counted = np.intersect1d(np.flatnonzero(mask), known_rows(labels))
        if not can_be_measured(labels[counted]):
            continue
        of_seeds = [metrics_of(one[counted], labels[counted]) for one in logits]
        values = {name: float(np.mean([v[name] for v in of_seeds])) for name in of_seeds[0]}
        scores = [v[measure] for v in of_seeds]
        if len(of_seeds) > 1:
            values[f"{measure}_std"] = float(np.std(scores, ddof=1))
        record = make_record(
            model,
            test,
            task,
            domain=domain,
            num_images=len(counted),
            metrics=values,
            extra={**facts, f"{measure}_of_seeds": scores} if facts else None,
        )
        records.append(record)
    return records


def _facts(
    answers: _Answers,
    data: ProbeData,
    shots: int | None,
    seeds: Sequence[int],
    learnt: Sequence[Learnt],
    config: LinearProbeConfig,
) -> dict[str, Any]:
    """Return how the probes of a setting came to be, one value a seed where seeds differ."""
    counts = [one.num_images for one in learnt]
    return {
        "shots": shots,
        "seeds": list(seeds),
        "num_train": counts[0] if len(set(counts)) == 1 else counts,
        "features": answers.kind,
        "start": config.start,
        "solver": learnt[0].solver,
        "weight_decay": [one.setting.weight_decay for one in learnt],
        "lr": [one.setting.lr for one in learnt],
        f"val_{measure_of(labels_of(data.train))}": [one.val_score for one in learnt],
    }
