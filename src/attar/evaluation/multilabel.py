"""Several labels an image: the probability of each label, and the numbers of Li et al.'s table 12.

N: images, C: labels, D: the teacher's joint dimension. Ordinary evaluation ranks classes against
each other; here each label is decided by itself, so these models have a door of their own.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.features import features_of, image_batches
from attar.evaluation.models import EvaluatedModel, all_outputs, student_transform
from attar.evaluation.predictions import file_stem
from attar.evaluation.validation import Validator
from attar.methods.dualcoop import MultiLabelObjective
from attar.multilabel import THRESHOLD, Decisions, f1_paper, m1, macro_f1
from attar.records import Record
from attar.students.student import Student

TASK = "multi_label"

log = logging.getLogger(__name__)


def label_model(
    model: EvaluatedModel,
    objective: MultiLabelObjective,
    class_names: Sequence[str],
    class_features: Tensor | None,
) -> EvaluatedModel:
    """Turn a student into a model whose features are the probabilities [N, C] of labels.

    Args:
        model: the student.
        objective: as it was trained, with what it has learnt.
        class_names: the C labels.
        class_features: what the objective compares regions with; None for a plain classifier.
    """
    outputs_of = model.outputs
    if outputs_of is None:
        raise UsageError(f"{model.role} ({model.name}) shows no regions of its images")

    def encode(pixels: Tensor) -> Tensor:
        outputs = outputs_of(pixels)
        device = outputs.features.device
        features = None if class_features is None else class_features.to(device)
        with torch.no_grad():
            return objective.to(device).probabilities(outputs, features)

    return replace(
        model,
        head="classes",
        dim=len(class_names),
        class_names=tuple(class_names),
        logit_scale=1.0,
        class_features=None,
        in_teacher_space=False,
        identity=f"{model.identity}/{_digest(objective, class_names, class_features)}",
        encode=encode,
    )


def multi_label(
    model: EvaluatedModel,
    table: ImageTable,
    split: str,
    groups: Mapping[str, Collection[str]],
    out_dir: Path,
    dataset: str,
    config: EvaluationConfig,
) -> list[Record]:
    """Measure what `label_model` made: one record for each group of labels, all images together.

    Writes the probabilities to OUT/features/ROLE-SPLIT.safetensors. A group without a label in any
    of the images has no record, nor has one with labels that the model cannot name.

    Args:
        model: gives probabilities of `model.class_names`.
        table: images with label sets.
        split: the name of the images' split.
        groups: names of labels, by what the records' `extra` calls them under "labels".
        out_dir: the run folder.
        dataset: the name that the records carry.
        config: batch size and workers.
    """
    probabilities = features_of(
        model,
        table,
        out_dir / "features" / f"{file_stem(model.role, split)}.safetensors",
        batch_size=config.batch_size,
        workers=config.workers,
    )
    targets = table.multi_hot(range(len(table))).astype(bool)
    position = {name: index for index, name in enumerate(model.class_names)}
    records = []
    for group, members in groups.items():
        rows = [i for i, name in enumerate(table.class_names) if name in members]
        names = [table.class_names[i] for i in rows]
        if not targets[:, rows].any():
            continue
        if any(name not in position for name in names):
            log.info("%s cannot name the %s labels of %s", model.role, group, split)
            continue
        predicted = probabilities[:, [position[name] for name in names]] > THRESHOLD
        values = label_metrics(torch.from_numpy(predicted), torch.from_numpy(targets[:, rows]))
        records.append(
            Record(
                dataset=dataset,
                model=model.name,
                pretrained=model.pretrained,
                task=TASK,
                metrics=values,
                role=model.role,
                method=model.method,
                split=split,
                num_images=len(table),
                extra={"labels": group, "num_classes": len(names), "threshold": THRESHOLD},
            )
        )
    return records


def label_metrics(predicted: Decisions, targets: Decisions) -> dict[str, float]:
    """Return m1, f1_paper and macro_f1 of decisions [N, C] against what is there [N, C]."""
    return {
        "m1": m1(predicted, targets),
        "f1_paper": f1_paper(predicted, targets),
        "macro_f1": macro_f1(predicted, targets),
    }


def make_label_validator(
    table: ImageTable,
    objective: MultiLabelObjective,
    class_features: Callable[[], Tensor] | None,
    *,
    batch_size: int = 64,
    workers: int = 2,
) -> Validator:
    """Return the function that measures a student on source validation images.

    It returns `loss`, the objective's asymmetric loss, the metrics of `label_metrics`, and
    `selection`, the macro-F1. Objective and class features are asked as they are at that moment.

    Raises:
        UsageError: there are no images.
    """
    if not len(table):
        raise UsageError("there are no source validation images; raise the validation fraction")
    targets = torch.from_numpy(table.multi_hot(range(len(table))))

    def validate(student: Student) -> dict[str, float]:
        with torch.no_grad():
            features = None if class_features is None else class_features()
            parts = []
            for pixels in image_batches(table, student_transform(student), batch_size, workers):
                outputs = all_outputs(student, pixels, regions=objective.needs_regions)
                parts.append(objective.probabilities(outputs, features).float().cpu())
            probabilities = torch.cat(parts)
            loss = float(objective.asymmetric(probabilities, targets))
        values = label_metrics(probabilities > THRESHOLD, targets)
        return {"loss": loss, **values, "selection": values["macro_f1"]}

    return validate


def _digest(
    objective: MultiLabelObjective, class_names: Sequence[str], class_features: Tensor | None
) -> str:
    """Return what the probabilities depend on beside the student, as one checksum."""
    digest = hashlib.sha256(repr((asdict(objective.options), tuple(class_names))).encode())
    tensors = list(objective.state_dict().values())
    tensors += [] if class_features is None else [class_features]
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
