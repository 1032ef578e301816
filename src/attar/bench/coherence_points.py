"""Students of a grid over classes as points: their coherence and their accuracy on unseen classes.

Read from what `attar bench classes` wrote, for scripts/coherence_correlation.py.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attar.bench.class_table import METRIC
from attar.bench.ranks import Floats
from attar.errors import UsageError
from attar.evaluation.coherence import CLASSES, NEIGHBOURS
from attar.evaluation.coherence import TASK as COHERENCE
from attar.evaluation.fidelity import TASK as FIDELITY
from attar.evaluation.zero_shot import TASK as ZERO_SHOT
from attar.records import Record

Quantity = tuple[str, str, str, str]
"""(task, split, domain, metric): what a record says of one student."""
Student = tuple[str, int]
"""(row, seed)."""
Said = Mapping[Student, Mapping[Quantity, float]]

TRAIN, SEEN, UNSEEN, HELD_OUT = "train", "test_id", "unseen_classes", "held_out"
WORDS = {TRAIN: "training images", SEEN: "seen classes", UNSEEN: "unseen classes"}


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A number that may foretell the accuracy on unseen classes."""

    name: str
    quantity: Quantity
    sign: float = 1.0
    """-1 where less is better, so that a positive correlation means "the better, the better"."""

    @property
    def title(self) -> str:
        """Its name and the images it is measured on."""
        return f"{self.name}, {WORDS[self.quantity[1]]}"


METRICS = (
    ("M_rel ↑", "relative_coherence", 1.0),
    *((f"M_neigh, k={k} ↑", f"neighborhood_overlap@{k}", 1.0) for k in NEIGHBOURS),
    *((f"M_vlalign, k={k} ↓", f"alignment_inversions@{k}", -1.0) for k in CLASSES),
)
"""The paper's metrics: name, metric of the record, sign."""
COHERENT = tuple(
    Predictor(name=name, quantity=(COHERENCE, split, "all", metric), sign=sign)
    for split in (TRAIN, UNSEEN)
    for name, metric, sign in METRICS
)
PLAIN = (
    Predictor(name="accuracy ↑", quantity=(ZERO_SHOT, SEEN, "all", METRIC)),
    Predictor(name="cosine with the teacher ↑", quantity=(FIDELITY, SEEN, "all", "mean_cosine")),
    Predictor(name="cosine with the teacher ↑", quantity=(FIDELITY, UNSEEN, "all", "mean_cosine")),
)
PREDICTORS = (*COHERENT, *PLAIN)


@dataclass(frozen=True, kw_only=True)
class Points:
    """Students of R rows with the same S seeds: what may foretell, and what is to be foretold.

    A seed also draws which classes are unseen, so accuracies compare within a seed only, and a
    mean over seeds compares with one over the same seeds only.
    """

    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    predictors: Floats
    """[S, R, P] in the order of PREDICTORS, as measured."""
    outcomes: Floats
    """[S, R, O] accuracies."""
    domains: tuple[str, ...]
    """[O] where the accuracy was measured: "all", then each held-out domain."""
    seeds_left_out: tuple[int, ...] = ()
    """Seeds that some row lacks."""
    rows_left_out: tuple[str, ...] = ()
    """Rows without some of the numbers, such as a closed set, which cannot name an unseen class."""

    @property
    def turned(self) -> Floats:
        """The predictors [S, R, P] with those turned round where less is better."""
        return self.predictors * np.array([predictor.sign for predictor in PREDICTORS])


def read_points(records: Sequence[Record]) -> Points:
    """Return the rows that have all the numbers, with the seeds that all those rows have.

    Raises:
        UsageError: no row has all the numbers, no seed is shared, the students are of several
            models or datasets, or two records disagree about one of them.
    """
    students = [r for r in records if r.role == "student" and "row" in r.extra]
    _refuse_several("students", {record.model for record in students})
    _refuse_several("datasets", {record.dataset for record in students})
    said = _by_student(students)
    held_out = {r.domain for r in students if r.split == HELD_OUT and r.domain != "all"}
    domains = ("all", *sorted(held_out))
    accuracies = [(ZERO_SHOT, UNSEEN, domain, METRIC) for domain in domains]
    wanted = [*(predictor.quantity for predictor in PREDICTORS), *accuracies]
    seeds_of: dict[str, set[int]] = defaultdict(set)
    for (row, seed), numbers in said.items():
        if all(quantity in numbers for quantity in wanted):
            seeds_of[row].add(seed)
    rows, seeds = tuple(seeds_of), _shared(seeds_of)
    values = np.array(
        [[said[row, seed][q] for q in wanted] for seed in seeds for row in rows]
    ).reshape(len(seeds), len(rows), len(wanted))
    return Points(
        rows=rows,
        seeds=seeds,
        predictors=values[..., : len(PREDICTORS)],
        outcomes=values[..., len(PREDICTORS) :],
        domains=domains,
        seeds_left_out=tuple(sorted(set().union(*seeds_of.values()) - set(seeds))),
        rows_left_out=tuple(dict.fromkeys(row for row, _ in said if row not in seeds_of)),
    )


def _refuse_several(what: str, names: set[str]) -> None:
    if len(names) > 1:
        raise UsageError(
            f"the results are of several {what} ({', '.join(sorted(names))}): rows are compared "
            "that differ in nothing else; give the folders of one at a time"
        )


def _by_student(records: Sequence[Record]) -> Said:
    """Return every number said of each student; the same number may be said twice."""
    found: dict[Student, dict[Quantity, float]] = defaultdict(dict)
    for record in records:
        row, seed = student = str(record.extra["row"]), int(record.extra["seed"])
        for metric, value in record.metrics.items():
            quantity = (record.task, record.split, record.domain, metric)
            known = found[student].setdefault(quantity, value)
            if not np.array_equal(known, value, equal_nan=True):
                raise UsageError(
                    f"row {row}, seed {seed} has two values of {' '.join(quantity)}, {known} and "
                    f"{value}: give --results folders that have no row and seed in common"
                )
    return found


def _shared(seeds_of: Mapping[str, set[int]]) -> tuple[int, ...]:
    """Return the seeds that every row has."""
    if not seeds_of:
        raise UsageError(
            "no row has both coherence and accuracy on unseen classes: give --results a folder "
            "that `attar bench classes` wrote results.jsonl to"
        )
    shared = set.intersection(*seeds_of.values())
    if not shared:
        listed = "; ".join(f"{row}: {sorted(seeds)}" for row, seeds in seeds_of.items())
        raise UsageError(
            f"no seed is shared by all rows ({listed}), and each seed has other unseen classes: "
            "run `attar bench classes` with the same seeds for all"
        )
    return tuple(sorted(shared))
