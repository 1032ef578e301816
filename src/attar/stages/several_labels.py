"""Several labels an image: validation while training, and the measurement of a finished run."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from attar.data.splits import SourceSplits
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.models import EvaluatedModel
from attar.evaluation.multilabel import label_model, make_label_validator, multi_label
from attar.evaluation.tasks import replace_records
from attar.evaluation.validation import Validator
from attar.methods.base import ClassFeatures, Method, Phase, Sizes
from attar.methods.dualcoop import MultiLabelObjective
from attar.methods.registry import METHODS, method_options
from attar.records import Record
from attar.run import RunFolder, from_options
from attar.stages import class_space
from attar.stages.job import Job
from attar.training.checkpoint import load_own_state

log = logging.getLogger(__name__)

SEEN, UNSEEN = "seen", "unseen"


def check(job: Job) -> None:
    """Refuse a student that has no regions where the method compares regions.

    Raises:
        UsageError: the student's last feature map is not convolutional.
    """
    if not job.recipe[0].paired_prompts:
        return
    student, size = job.student, job.student.spec.image_size
    was_training = student.training
    student.eval()
    with torch.no_grad():
        student(torch.zeros(1, 3, size, size), regions=True)
    student.train(was_training)


def validation(
    source: SourceSplits,
    phases: Sequence[Phase],
    class_features: ClassFeatures | None,
    config: EvaluationConfig,
) -> Validator:
    """Return the callable that measures a student on source validation images."""
    objective = phases[-1].objective
    assert isinstance(objective, MultiLabelObjective)
    return make_label_validator(
        source.val,
        objective,
        class_features,
        batch_size=config.batch_size,
        workers=config.workers,
    )


def measure(
    models: Sequence[EvaluatedModel],
    tables: Mapping[str, ImageTable],
    seen: Collection[str],
    dataset: str,
    config: EvaluationConfig,
    out: Path,
) -> list[Record]:
    """Measure each model that gives labels on each split; seen and unseen labels are told apart.

    Args:
        models: a run's student and what stands beside it; who gives no labels is left out, aloud.
        tables: the images of each split.
        seen: the labels of training images.
        dataset: the name that the records carry.
        config: batch size and workers.
        out: the run folder, whose results.jsonl gets the records.

    Raises:
        UsageError: none of the models gives labels.
    """
    answering = _answering(models)
    found: list[Record] = []
    for split, table in tables.items():
        unseen = set(table.class_names) - set(seen)
        groups = {SEEN: seen, UNSEEN: unseen}
        for model in answering:
            found += multi_label(model, table, split, groups, out, dataset, config)
    replace_records(out / "results.jsonl", found)
    return found


def _answering(models: Sequence[EvaluatedModel]) -> list[EvaluatedModel]:
    """Turn the models that give several labels into ones that give probabilities."""
    found = {model.role: _with_labels(model) for model in models}
    silent = [role for role, model in found.items() if model is None]
    if silent:
        log.info("several labels an image: left out, as they give none: %s", ", ".join(silent))
    answering = [model for model in found.values() if model is not None]
    if not answering:
        raise UsageError(
            "none of the models gives several labels an image: train one with --method "
            + " or ".join(name for name, method in METHODS.items() if method.gives_several_labels)
        )
    return answering


def _with_labels(model: EvaluatedModel) -> EvaluatedModel | None:
    """Return what gives the probabilities of labels; None for a model that was not trained so."""
    method = METHODS.get(model.method)
    if method is None or not method.gives_several_labels or model.outputs is None:
        return None
    run = RunFolder(Path(model.pretrained).parent)
    names, features = model.class_names, None
    if method.paired_prompts:
        names, features = class_space.learnt_pairs(run.path)
    return label_model(model, _trained_objective(method, run), names, features)


def _trained_objective(method: Method, run: RunFolder) -> MultiLabelObjective:
    """Build a run's objective again and give it what it has learnt."""
    options = method_options(method, from_options(run.options()).method_options)
    phases = method.phases(options, 1, Sizes(dim=1, trunk_width=1, num_classes=1, num_domains=0))
    path = run.path / "objective.safetensors"
    load_own_state(load_file(path) if path.is_file() else {}, phases, None)
    objective = phases[-1].objective
    assert isinstance(objective, MultiLabelObjective)
    return objective
