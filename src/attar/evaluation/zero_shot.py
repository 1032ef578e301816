"""Zero-shot classification: how often the nearest class is the right one, and how surely."""

import numpy as np
from numpy.typing import NDArray

from attar.evaluation import metrics
from attar.evaluation.evidence import EvaluationData, Evidence, make_record
from attar.evaluation.metrics import Floats
from attar.records import Record

TASK = "zeroshot_classification"
GENERALISED = "generalised_zeroshot_classification"
"""Seen and unseen classes compete: what a deployed model faces."""


def zero_shot(evidence: Evidence, teacher: Evidence | None, data: EvaluationData) -> list[Record]:
    """Measure one model over all labelled images and over those of each domain.

    Images without a label do not count; without any, or without logits, there are no records.
    """
    return _measure(evidence, data, TASK)


def generalised_zero_shot(
    evidence: Evidence, teacher: Evidence | None, data: EvaluationData
) -> list[Record]:
    """Measure as `zero_shot` does, on data whose classes are the seen and unseen ones together."""
    return _measure(evidence, data, GENERALISED)


def _measure(evidence: Evidence, data: EvaluationData, task: str) -> list[Record]:
    if evidence.logits is None:
        return []
    records = []
    for domain, mask in data.domains():
        counted = mask & (data.labels >= 0)
        if counted.any():
            values = classification_metrics(evidence.logits[counted], data.labels[counted])
            records.append(
                make_record(
                    evidence.model,
                    data,
                    task,
                    domain=domain,
                    num_images=int(counted.sum()),
                    metrics=values,
                )
            )
    return records


def classification_metrics(logits: Floats, labels: NDArray[np.int64]) -> dict[str, float]:
    """Return acc1, acc5 (of min(5, C)), mean_per_class_recall and ece of logits [N, C]."""
    best = metrics.top_k(logits, 1)[:, 0]
    confidences = metrics.softmax(logits).max(axis=1)
    return {
        "acc1": metrics.acc1(logits, labels),
        "acc5": metrics.acc5(logits, labels),
        "mean_per_class_recall": metrics.mean_per_class_recall(best, labels),
        "ece": metrics.ece(confidences, best == labels),
    }
