"""Is this teacher good enough on this data? Its zero-shot answers against a probe on a few labels.

The probe stands for what labels give without the teacher's words: a lower bound, since training
with all labels gives more. On the images of a domain it has seen labels of other domains only, so
both sides are asked about a domain that they were not told about. `docs/gate.md` explains the rule.

N: images, R: draws of labels, J: images of a judged domain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from attar.errors import UsageError
from attar.evaluation.few_labels import Mask, probe_correct
from attar.evaluation.gate_config import GateConfig, LabelsOf
from attar.evaluation.intervals import Interval, mean_where, paired_difference, wilson
from attar.evaluation.metrics import Floats, Indices

Verdict = Literal["go", "blend", "stop"]
Ground = Literal["behind", "unsure", "lost"]
"""Why a teacher may not simply go: labels are `behind`-provably better, the images are too few to
rule that out (`unsure`), or classes are `lost`, that is systematically called something else."""


@dataclass(frozen=True, kw_only=True)
class GateImages:
    """Images with labels, and which of them give the probe theirs."""

    labels: Indices
    """[N] index into `class_names`."""
    domains: Indices
    """[N] index into `domain_names`; all zero where there are no domains."""
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    drawn: Mask
    """[R, N]"""

    def labels_of(self, domain: int, whose: LabelsOf) -> Mask:
        """Return the draws [R, N] of the domain's own labels, or of all others'."""
        own = self.domains == domain
        return np.asarray(self.drawn & (own if whose == "own" else ~own))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How a probe does on the images of a domain."""

    features: str
    """Whose frozen features it reads: "teacher" or "student"."""
    labels_of: LabelsOf
    decides: bool
    """Whether the verdict heeds it."""
    correct: Floats
    """[R, J] 1 right, 0 wrong, NaN where the image's own label was learnt from."""
    difference: Interval
    """Zero-shot accuracy minus the probe's."""

    @property
    def accuracies(self) -> Floats:
        """The accuracy of each draw that could be made."""
        asked = np.isfinite(self.correct)
        some = asked.any(axis=1)
        return mean_where(self.correct[some], asked[some], axis=1)


@dataclass(frozen=True, kw_only=True)
class ClassFindings:
    """A class within a domain."""

    name: str
    num_images: int
    recall: Interval
    """Zero-shot."""
    difference: Interval | None
    """Zero-shot recall minus that of the strongest probe that decides; None where the probe was
    asked about none of the images."""
    taken_for: str = ""
    """What the teacher calls its images instead, provably more often than by their name."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found on one domain, and what follows."""

    domain: str
    zero_shot: Interval
    num_images: int
    answers: Indices
    """[J] the teacher's."""
    right: Floats
    """[J] 1 where the teacher is right."""
    probes: tuple[Probe, ...]
    classes: tuple[ClassFindings, ...]
    verdict: Verdict
    grounds: tuple[Ground, ...]

    @property
    def lost(self) -> tuple[ClassFindings, ...]:
        """The classes that the teacher calls something else."""
        return tuple(one for one in self.classes if one.taken_for)


def decide(
    zero_shot: Interval,
    differences: Sequence[Interval],
    lost: int,
    classes: int,
    margin: float,
) -> tuple[Verdict, tuple[Ground, ...]]:
    """Return the verdict on a domain, and its grounds.

    - **go**: zero-shot is behind no probe by more than the margin, interval and all, and no class
      is lost.
    - **stop**: zero-shot is provably wrong on most images, and a probe is provably better or at
      least half of the classes are lost.
    - **blend**: anything else. Where the teacher is right blending costs little, so it is also the
      answer to too few images.

    Args:
        zero_shot: its accuracy.
        differences: zero-shot accuracy minus that of each probe that decides; none where too few
            images were left to make one.
        lost: how many classes the teacher calls something else.
        classes: how many there are.
        margin: accuracy that one is ready to lose.
    """
    grounds: list[Ground] = []
    short = [one for one in differences if one.low < -margin]
    if any(one.high < 0 for one in short):
        grounds.append("behind")
    elif short or not differences:
        grounds.append("unsure")
    if lost:
        grounds.append("lost")
    if not grounds:
        return "go", ()
    hopeless = "behind" in grounds or 2 * lost >= classes
    return "stop" if zero_shot.high < 0.5 and hopeless else "blend", tuple(grounds)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on several domains together: theirs if they agree, else blend.

    Blending weighs each domain and class by itself, so it does justice to a mixture.
    """
    return verdicts[0] if len(set(verdicts)) == 1 else "blend"


def taken_for(counts: Indices, own: int, confidence: float) -> int | None:
    """Return the class that images of a class are called instead, or None.

    A student that imitates answers of which the true class is the most frequent can still learn the
    class; where another one is, no number of images helps. So a class counts as lost when among the
    images called by their own name or by the most frequent other one, the share of the own name
    lies below one half, Wilson's interval and all.

    Args:
        counts: [C] how often the class's images are called each class.
        own: the class.
        confidence: of the interval.
    """
    others = counts.copy()
    others[own] = -1
    rival = int(others.argmax())
    both = int(counts[own] + counts[rival])
    if rival == own or not both:
        return None
    return rival if wilson(int(counts[own]), both, confidence).high < 0.5 else None


def judge(
    images: GateImages,
    answers: Indices,
    features: Mapping[str, NDArray[Any]],
    judged: Sequence[int],
    config: GateConfig,
) -> list[Findings]:
    """Judge the teacher on each domain; with several domains the last findings are on them all.

    Args:
        images: the labelled images.
        answers: [N] the teacher's zero-shot answers.
        features: "teacher" or "student" -> its frozen features [N, W]; the teacher's are needed.
        judged: the domains.
        config: see `GateConfig`.
    """
    whose = deciding_labels(images, config)
    found = [_judge_domain(images, answers, features, domain, whose, config) for domain in judged]
    return found if len(found) == 1 else [*found, _together(images, found, config)]


def deciding_labels(images: GateImages, config: GateConfig) -> LabelsOf:
    """Return whose labels decide.

    Raises:
        UsageError: labels of other domains are asked for and there are none.
    """
    several = len(np.unique(images.domains)) > 1
    if config.labels_of == "auto":
        return "others" if several else "own"
    if config.labels_of == "others" and not several:
        raise UsageError(
            "--labels-of others needs labelled images of two or more domains; give more data, or "
            "--labels-of own"
        )
    return config.labels_of


def _judge_domain(
    images: GateImages,
    answers: Indices,
    features: Mapping[str, NDArray[Any]],
    domain: int,
    whose: LabelsOf,
    config: GateConfig,
) -> Findings:
    judged = images.domains == domain
    right = (answers == images.labels)[judged].astype(np.float64)
    probes = []
    for name, rows in features.items():
        for labels_of in ("others", "own"):
            learn = images.labels_of(domain, labels_of)
            correct = probe_correct(rows, images.labels, learn, judged)
            if np.isfinite(correct).any():
                probes.append(
                    Probe(
                        features=name,
                        labels_of=labels_of,
                        decides=labels_of == whose,
                        correct=correct,
                        difference=paired_difference(right, correct, config.confidence),
                    )
                )
    return _conclude(
        images.domain_names[domain],
        answers[judged],
        images.labels[judged],
        images.class_names,
        tuple(probes),
        config,
    )


def _together(images: GateImages, found: Sequence[Findings], config: GateConfig) -> Findings:
    """Return what holds for all judged domains; each image was judged by its own domain's probe."""
    index = {name: number for number, name in enumerate(images.domain_names)}
    labels = [images.labels[images.domains == index[one.domain]] for one in found]
    right = np.concatenate([one.right for one in found])
    kinds = [(probe.features, probe.labels_of, probe.decides) for probe in found[0].probes]
    probes = []
    for features, labels_of, decides in kinds:
        parts = [p.correct for one in found for p in one.probes
                 if (p.features, p.labels_of) == (features, labels_of)]  # fmt: skip
        if len(parts) == len(found):
            correct = np.concatenate(parts, axis=1)
            difference = paired_difference(right, correct, config.confidence)
            probes.append(
                Probe(
                    features=features,
                    labels_of=labels_of,
                    decides=decides,
                    correct=correct,
                    difference=difference,
                )
            )
    answers = np.concatenate([one.answers for one in found])
    names = images.class_names
    whole = _conclude("all", answers, np.concatenate(labels), names, tuple(probes), config)
    grounds = tuple(dict.fromkeys(ground for one in found for ground in one.grounds))
    return replace(whole, verdict=overall([one.verdict for one in found]), grounds=grounds)


def _conclude(
    domain: str,
    answers: Indices,
    labels: Indices,
    class_names: Sequence[str],
    probes: tuple[Probe, ...],
    config: GateConfig,
) -> Findings:
    right = (answers == labels).astype(np.float64)
    zero_shot = wilson(right.sum(), len(right), config.confidence)
    deciding = [probe for probe in probes if probe.decides]
    strongest = max(deciding, key=lambda probe: probe.accuracies.mean(), default=None)
    classes = _classes(answers, labels, class_names, strongest, config)
    lost = sum(bool(one.taken_for) for one in classes)
    differences = [probe.difference for probe in deciding]
    verdict, grounds = decide(zero_shot, differences, lost, len(classes), config.margin)
    return Findings(
        domain=domain,
        zero_shot=zero_shot,
        num_images=len(labels),
        answers=answers,
        right=right,
        probes=probes,
        classes=classes,
        verdict=verdict,
        grounds=grounds,
    )


def _classes(
    answers: Indices,
    labels: Indices,
    class_names: Sequence[str],
    probe: Probe | None,
    config: GateConfig,
) -> tuple[ClassFindings, ...]:
    """Return the findings on each class that has images."""
    found = []
    present = np.unique(labels)
    # Bonferroni: that any class of many is called lost by chance must stay as unlikely as for one.
    strict = 1 - (1 - config.confidence) / len(present)
    for label in present:
        here = labels == label
        right = (answers[here] == label).astype(np.float64)
        rival = taken_for(np.bincount(answers[here], minlength=len(class_names)), label, strict)
        correct = None if probe is None else probe.correct[:, here]
        difference = None
        if correct is not None and np.isfinite(correct).any():
            difference = paired_difference(right, correct, config.confidence)
        found.append(
            ClassFindings(
                name=class_names[label],
                num_images=int(here.sum()),
                recall=wilson(right.sum(), len(right), config.confidence),
                difference=difference,
                taken_for="" if rival is None else class_names[rival],
            )
        )
    return tuple(found)
