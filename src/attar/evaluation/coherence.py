"""Coherence: whether a model orders images and classes in its space as its teacher does.

The metrics of Li et al., ICCV 2023 (arXiv 2307.03135), on the images of one split. They depend on
how many images there are: numbers of splits of different sizes are no comparison.
"""

import torch
from torch import Tensor

from attar import metrics
from attar.device import pick_device
from attar.evaluation.evidence import EvaluationData, Evidence, is_same_teacher, make_record
from attar.evaluation.fidelity import shares_space
from attar.evaluation.models import Features
from attar.records import Record

TASK = "coherence"

NEIGHBOURS = (3, 5, 10)
CLASSES = (2, 3, 5)
"""The paper's k of M_neigh and of M_vlalign."""


def coherence(evidence: Evidence, teacher: Evidence | None, data: EvaluationData) -> list[Record]:
    """Compare one model with the teacher over all images and over those of each domain.

    `neighborhood_overlap@K` needs no common space, so every model that gives features has it. The
    others need the teacher's: `relative_coherence`, `squared_distance`, `angle` (degrees), and,
    where there are class features, `alignment_inversions@K`. A K that has too few images or classes
    is left out. A plain classifier, the teacher itself, and an evaluation without a teacher give no
    records.
    """
    if teacher is None or evidence.model is teacher.model:
        return []
    if not evidence.model.head == teacher.model.head == "embedding":
        return []
    own, wanted = _tensor(evidence.features), _tensor(teacher.features)
    in_space = shares_space(evidence, teacher)
    classes = _class_features(teacher, data) if in_space else None
    records: list[Record] = []
    for domain, mask in data.domains():
        if mask.all() and records:
            values = dict(records[0].metrics)
        else:
            rows = torch.from_numpy(mask).to(own.device)
            values = _neighbourhoods(own[rows], wanted[rows])
            if in_space:
                values |= _distances(own[rows], wanted[rows], classes)
        if values:
            records.append(
                make_record(
                    evidence.model,
                    data,
                    TASK,
                    domain=domain,
                    num_images=int(mask.sum()),
                    metrics=values,
                )
            )
    return records


def _neighbourhoods(own: Tensor, wanted: Tensor) -> dict[str, float]:
    ks = [k for k in NEIGHBOURS if k < len(own)]
    if not ks:
        return {}
    overlaps = metrics.neighborhood_overlaps(own, wanted, ks)
    return {f"neighborhood_overlap@{k}": value for k, value in zip(ks, overlaps, strict=True)}


def _distances(own: Tensor, wanted: Tensor, classes: Tensor | None) -> dict[str, float]:
    values = {}
    if len(own) > 1:  # one image is always the nearest to itself
        values["relative_coherence"] = metrics.relative_coherence(own, wanted)
    for k in CLASSES:
        if classes is not None and k <= len(classes):
            inversions = metrics.alignment_inversions(own, wanted, classes, k)
            values[f"alignment_inversions@{k}"] = inversions
    values["squared_distance"], values["angle"] = metrics.feature_gap(own, wanted)
    return values


def _class_features(teacher: Evidence, data: EvaluationData) -> Tensor | None:
    """Return the class features [C, D] of the teacher's own space, where there are any."""
    if data.class_features is None:
        return None
    if not is_same_teacher(teacher.model.teacher_identity, data.teacher_identity):
        return None
    return _tensor(data.class_features)


def _tensor(features: Features) -> Tensor:
    return torch.tensor(features).to(pick_device())
