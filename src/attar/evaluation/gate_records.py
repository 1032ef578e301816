"""The gate's findings as words, and as lines of results.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attar.evaluation.gate import Findings, Probe
from attar.evaluation.gate_config import GateConfig
from attar.evaluation.intervals import Interval
from attar.records import Record
from attar.teachers.base import TeacherInfo

TASK = "teacher_gate"
"""A line for the teacher (role "teacher") and each probe (role "probe") on each domain.

A probe cannot be asked about images that gave it a label in every draw; its line counts the others
alone, and says what `zero_shot` is on them.
"""
CLASS_TASK = "teacher_gate_class"
"""A line for each class of each domain."""
_NAMED = 3
"""Lost classes that a sentence names at most."""

_ADVICE = {
    "go": "Distil it.",
    "blend": "Distil it with the labels: --method.label-weight auto follows them where the teacher "
    "is weak.",
    "stop": "Do not distil it: train on the labels (--method erm), or find another teacher.",
}


def summary(found: Sequence[Findings]) -> str:
    """Return the verdict on all domains, in words."""
    whole = found[-1]
    if len(found) == 1:
        return f"{whole.verdict.capitalize()}. {_ADVICE[whole.verdict]}"
    said = []
    for verdict in ("go", "blend", "stop"):
        names = [one.domain for one in found[:-1] if one.verdict == verdict]
        if names:
            said.append(f"{verdict} on {', '.join(names)}")
    return f"{whole.verdict.capitalize()}: {'; '.join(said)}. {_ADVICE[whole.verdict]}"


def reason(found: Findings, config: GateConfig) -> str:
    """Return what the verdict on one domain rests on: the figures, in words."""
    sides = [f"Zero-shot is right on {_percent(found.zero_shot)} of {found.num_images:,} images"]
    sides += [_against(probe, config) for probe in found.probes if probe.decides]
    if "unsure" in found.grounds:
        sides.append(f"more than {_points(config.margin)} behind cannot be ruled out")
    if found.lost:
        named = [f"{one.name} → {one.taken_for}" for one in found.lost[:_NAMED]]
        rest = len(found.lost) - _NAMED
        named += [f"{rest} more"] if rest > 0 else []
        sides.append(
            f"{len(found.lost)} of {len(found.classes)} classes are mostly called something else "
            f"({', '.join(named)})"
        )
    return "; ".join(sides) + "."


def _against(probe: Probe, config: GateConfig) -> str:
    whose = "other domains" if probe.labels_of == "others" else "the same domain"
    gap = probe.difference
    standing = "ahead of" if gap.value >= 0 else "behind"
    return (
        f"{_points(abs(gap.value))} ({100 * gap.low:+.1f} … {100 * gap.high:+.1f}) {standing} a "
        f"probe on {probe.features} features with {config.labels_per_class} labels a class of "
        f"{whose}"
    )


def _percent(share: Interval) -> str:
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} … {100 * share.high:.1f})"


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def gate_records(
    found: Sequence[Findings],
    teacher: TeacherInfo,
    dataset: str,
    config: GateConfig,
    student: str | None = None,
) -> list[Record]:
    """Return every finding as a line; the summary stands with the teacher's last one.

    Args:
        found: what `judge` returned.
        teacher: who was judged.
        dataset: what the images are called.
        config: see `GateConfig`.
        student: the backbone whose features were probed too.
    """
    names = {"teacher": teacher.name, "student": f"timm/{student}"}
    records: list[Record] = []
    for one in found:
        common = {
            "dataset": dataset,
            "pretrained": teacher.identity[:12],
            "split": "gate",
            "domain": one.domain,
        }
        said = {"summary": summary(found)} if one is found[-1] else {}
        records.append(_teacher_record(one, teacher, config, common, said))
        records += [_probe_record(one, probe, names, config, common) for probe in one.probes]
        records += _class_records(one, teacher, common)
    return records


def _teacher_record(
    found: Findings,
    teacher: TeacherInfo,
    config: GateConfig,
    common: Mapping[str, Any],
    said: Mapping[str, str],
) -> Record:
    return Record(
        **common,
        model=teacher.name,
        task=TASK,
        role="teacher",
        num_images=found.num_images,
        metrics=_bounds("acc1", found.zero_shot),
        extra={
            "verdict": found.verdict,
            "grounds": list(found.grounds),
            "reason": reason(found, config),
            "margin": config.margin,
            "confidence": config.confidence,
            "num_classes": len(found.classes),
            **said,
        },
    )


def _probe_record(
    found: Findings,
    probe: Probe,
    names: Mapping[str, str],
    config: GateConfig,
    common: Mapping[str, Any],
) -> Record:
    draws = probe.accuracies
    asked = np.isfinite(probe.correct).any(axis=0)
    zero_shot = float(found.right[asked].mean())
    return Record(
        **common,
        model=names[probe.features],
        task=TASK,
        role="probe",
        num_images=int(asked.sum()),
        metrics={
            "acc1": zero_shot - probe.difference.value,
            "zero_shot": zero_shot,
            "deviation": float(draws.std(ddof=1)) if len(draws) > 1 else 0.0,
            **_bounds("difference", probe.difference),
        },
        extra={
            "features": probe.features,
            "labels_of": probe.labels_of,
            "labels_per_class": config.labels_per_class,
            "decides": probe.decides,
        },
    )


def _class_records(
    found: Findings, teacher: TeacherInfo, common: Mapping[str, Any]
) -> list[Record]:
    return [
        Record(
            **common,
            model=teacher.name,
            task=CLASS_TASK,
            role="teacher",
            num_images=one.num_images,
            metrics=_bounds("recall", one.recall)
            | ({} if one.difference is None else _bounds("difference", one.difference)),
            extra={"class": one.name, "taken_for": one.taken_for},
        )
        for one in found.classes
    ]


def _bounds(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
