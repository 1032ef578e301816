"""Fidelity: how closely a model follows its teacher. Needs no labels."""

from attar.evaluation import metrics
from attar.evaluation.evidence import EvaluationData, Evidence, is_same_teacher, make_record
from attar.records import Record

TASK = "fidelity"


def fidelity(evidence: Evidence, teacher: Evidence | None, data: EvaluationData) -> list[Record]:
    """Compare one model with the teacher over all images and over those of each domain.

    `agreement` is the share of images whose top class is the teacher's (where both classify),
    `mean_cosine` the mean cosine of paired features (where both live in one space). The teacher
    itself, and an evaluation without a teacher, give no records.
    """
    if teacher is None or evidence.model is teacher.model:
        return []
    agrees = None
    if evidence.logits is not None and teacher.logits is not None:
        own, wanted = metrics.top_k(evidence.logits, 1), metrics.top_k(teacher.logits, 1)
        agrees = (own[:, 0], wanted[:, 0])
    comparable = shares_space(evidence, teacher)
    records = []
    for domain, mask in data.domains():
        values = {}
        if agrees is not None:
            values["agreement"] = metrics.agreement(agrees[0][mask], agrees[1][mask])
        if comparable:
            values["mean_cosine"] = metrics.mean_cosine(
                evidence.features[mask], teacher.features[mask]
            )
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


def shares_space(evidence: Evidence, teacher: Evidence) -> bool:
    """Say whether distances between a model's features and the teacher's mean anything."""
    return (
        evidence.model.head == teacher.model.head == "embedding"
        and evidence.model.in_teacher_space
        and is_same_teacher(evidence.model.teacher_identity, teacher.model.teacher_identity)
        and evidence.features.shape == teacher.features.shape
    )
