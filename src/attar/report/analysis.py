"""What the predictions of a run show: confusions, calibration and a choice of samples."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.report.figures import Calibration, Curve
from attar.report.read import Predictions

_BINS = 15
_NOT_CURVES = ("step", "time", "epoch", "phase_step")


def calibration(predictions: Predictions) -> Calibration:
    """Bin the labelled images by confidence into 15 equal bins (0, 1/15], … (14/15, 1]."""
    known = np.isfinite(predictions.correct) & np.isfinite(predictions.confidence)
    confidence, correct = predictions.confidence[known], predictions.correct[known]
    edges = np.linspace(0, 1, _BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(bins, weights=confidence, minlength=_BINS) / counts
        accuracy = np.bincount(bins, weights=correct, minlength=_BINS) / counts
    gaps = np.abs(np.nan_to_num(accuracy) - np.nan_to_num(mean_confidence))
    return Calibration(
        edges=edges,
        confidence=mean_confidence,
        accuracy=accuracy,
        counts=counts,
        error=float((gaps * counts).sum() / max(len(confidence), 1)),
    )


def confusion(predictions: Predictions) -> tuple[NDArray[np.int64], list[str]]:
    """Count answers by true class: [C, C] (row: true class) and the C names, in order."""
    pairs = [
        (label, answer)
        for label, answer in zip(predictions.labels, predictions.answers, strict=True)
        if label is not None
    ]
    names = sorted({name for pair in pairs for name in pair}, key=_natural)
    place = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for (label, answer), number in Counter(pairs).items():
        counts[place[label], place[answer]] = number
    return counts, names


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts "class 2" before "class 10"."""
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d+)", name)
    ]


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """A true class, what it was taken for, how often, and how many images the class has."""

    label: str
    answer: str
    count: int
    total: int


def confused_pairs(predictions: Predictions, limit: int = 10) -> list[ConfusedPair]:
    """List the most frequent mistakes, the most frequent first."""
    totals = Counter(label for label in predictions.labels if label is not None)
    pairs = Counter(
        (label, answer)
        for label, answer in zip(predictions.labels, predictions.answers, strict=True)
        if label is not None and label != answer
    )
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return [
        ConfusedPair(label=label, answer=answer, count=count, total=totals[label])
        for (label, answer), count in ranked[:limit]
    ]


def choose_samples(
    student: Predictions, teacher: Predictions | None, limit: int
) -> list[tuple[str, str, list[int]]]:
    """Choose rows to show as (title, how they were chosen, indices), each row at most once.

    With labels: right, wrong, unsure. Without: like the teacher, unlike the teacher, unsure.
    """
    order = np.random.default_rng(0).permutation(len(student))  # the same page every time
    sure_first = np.argsort(-np.nan_to_num(student.confidence), kind="stable")
    if student.labelled:
        good, titles = student.correct == 1, ("Right", "Wrong")
        bad = student.correct == 0
    elif teacher is not None:
        answers = dict(zip(teacher.names, teacher.answers, strict=True))
        theirs = [answers.get(name) for name in student.names]
        good = np.array([a == b for a, b in zip(student.answers, theirs, strict=True)], dtype=bool)
        bad = np.array([b is not None for b in theirs], dtype=bool) & ~good
        titles = ("Like the teacher", "Unlike the teacher")
    else:
        good, bad = np.ones(len(student), dtype=bool), np.zeros(len(student), dtype=bool)
        titles = ("Answers", "")
    used: set[int] = set()
    groups = []
    for title, how, candidates in (
        (titles[1], "the most confident first", sure_first[bad[sure_first]]),
        ("Unsure", "the least confident", sure_first[::-1]),
        (titles[0], "drawn at random", order[good[order]]),
    ):
        rows = [int(i) for i in candidates if int(i) not in used][:limit]
        used.update(rows)
        if rows:
            groups.append((title, how, rows))
    return sorted(groups, key=lambda group: (*titles, "Unsure").index(group[0]))


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Turn metrics lines into curves: the loss, its terms, validation, the learning rate.

    A step that was logged twice (a run that was resumed) counts once, as it was logged last.
    """
    points: dict[tuple[bool, str], dict[int, float]] = {}
    for line in metrics:
        validation = line.get("split") == "val"
        for name, value in line.items():
            if name in _NOT_CURVES or not _is_number(value):
                continue
            key = (validation or name.startswith("val/"), name.removeprefix("val/"))
            points.setdefault(key, {})[line["step"]] = float(value)
    wanted = [key for key in points if key == (False, "loss")]
    terms = [key for key in points if not key[0] and key[1].startswith("term/")]
    wanted += terms if len(terms) > 1 else []
    wanted += [key for key in points if key[0]]
    wanted += [key for key in points if key == (False, "lr")]
    return [
        Curve(
            name=_curve_name(name, validation=validation),
            steps=sorted(points[validation, name]),
            values=[value for _, value in sorted(points[validation, name].items())],
            validation=validation,
        )
        for validation, name in wanted
        if len(points[validation, name]) > 1
    ]


def phase_spans(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """Find each phase's (name, first step, last step), in order; neighbours share a border."""
    steps: dict[str, list[int]] = {}
    for line in metrics:
        if isinstance(line.get("phase"), str) and line.get("split", "train") == "train":
            steps.setdefault(line["phase"], []).append(line["step"])
    spans = sorted((min(s), max(s), name) for name, s in steps.items())
    starts = [0 if i == 0 else spans[i - 1][1] for i in range(len(spans))]
    return [(name, start, last) for start, (_, last, name) in zip(starts, spans, strict=True)]


def throughput(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Say steps, time, images a second and the share of time spent waiting, where logged."""
    if not metrics:
        return ""

    def numbers(name: str) -> list[float]:
        return [float(line[name]) for line in metrics if _is_number(line.get(name))]

    parts = [f"{max(line['step'] for line in metrics):,} steps"]
    if seconds := numbers("time"):
        elapsed = max(seconds)
        # An absolute clock says nothing alone; a duration starts near zero.
        elapsed = elapsed - min(seconds) if elapsed > 1e8 else elapsed
        parts.append(f"in {elapsed / 60:.1f} minutes" if elapsed >= 90 else f"in {elapsed:.0f} s")
    text = " ".join(parts)
    if rates := numbers("images_per_s"):
        text += f", {np.median(rates):,.0f} images/s (median)"
    if waits := numbers("data_wait"):
        text += f", {100 * np.mean(waits):.0f} % of the time waiting for data"
    return text


def _curve_name(name: str, *, validation: bool) -> str:
    if validation:
        return f"validation: {name}"
    return {"loss": "loss", "lr": "learning rate"}.get(name, name.replace("term/", "term: "))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
