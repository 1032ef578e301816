"""Linear probes of any model on tables of images: features and labels in, records out."""

import logging
from collections import Counter
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
    draw_shots,
    learn_probe,
    zero_probe,
    zero_shot_probe,
)
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.evaluation.metrics import Floats, Indices, unit
from attar.evaluation.models import EvaluatedModel, Features
from attar.evaluation.predictions import file_stem
from attar.evaluation.zero_shot import classification_metrics
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
        UsageError: nothing is left of what was asked.
    """
    table, found = data.train, []
    for shots in config.shots:
        try:
            draw_shots(_labels(table), table.keys, shots, config.seeds[0])
            found.append(shots)
        except UsageError:
            few, count = _smallest_class(table)
            _LOG.warning("%d shots are left out: %s has %d training images", shots, few, count)
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
            found = _measure(model, test, task_name(shots), logits, facts)
            said = (model.role, task_name(shots), split, 100 * found[0].metrics["acc1"])
            _LOG.info("%s, %s on %s: accuracy %.1f %%", *said)
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
    labels = _labels(concatenate([data.train, data.val]))
    validation: NDArray[np.bool_] | None = None
    rows = np.flatnonzero(labels >= 0)
    if shots is not None:
        rows = draw_shots(_labels(data.train), data.train.keys, shots, seed)
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


def _measure(
    model: EvaluatedModel,
    test: EvaluationData,
    task: str,
    logits: Sequence[Floats],
    facts: Mapping[str, Any],
) -> list[Record]:
    """Return the mean metrics over the seeds' logits [N, C], with the deviation of the accuracy."""
    records = []
    for domain, mask in test.domains():
        counted = mask & (test.labels >= 0)
        if not counted.any():
            continue
        of_seeds = [classification_metrics(one[counted], test.labels[counted]) for one in logits]
        values = {name: float(np.mean([v[name] for v in of_seeds])) for name in of_seeds[0]}
        accuracies = [v["acc1"] for v in of_seeds]
        if len(of_seeds) > 1:
            values["acc1_std"] = float(np.std(accuracies, ddof=1))
        record = make_record(
            model,
            test,
            task,
            domain=domain,
            num_images=int(counted.sum()),
            metrics=values,
            extra={**facts, "acc1_of_seeds": accuracies},
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
    known = [int((_labels(table) >= 0).sum()) for table in (data.train, data.val)]
    classes = len({label for label in data.train.labels if label >= 0})
    return {
        "shots": shots,
        "seeds": list(seeds),
        "num_train": sum(known) if shots is None else shots * classes,
        "features": answers.kind,
        "start": config.start,
        "solver": learnt[0].solver,
        "weight_decay": [one.setting.weight_decay for one in learnt],
        "lr": [one.setting.lr for one in learnt],
        "val_acc1": [one.val_acc1 for one in learnt],
    }


def _labels(table: ImageTable) -> Indices:
    return np.asarray(table.labels, dtype=np.int64)


def _smallest_class(table: ImageTable) -> tuple[str, int]:
    label, count = Counter(label for label in table.labels if label >= 0).most_common()[-1]
    return table.class_names[label], count
