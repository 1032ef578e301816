"""A suite's data sets, measured one after the other for each model."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attar.errors import UsageError
from attar.evaluation.cost import cost_records
from attar.evaluation.evidence import (
    ALL_DOMAINS,
    EvaluationData,
    NotMeasurable,
    class_logits,
    evaluation_data,
    make_record,
)
from attar.evaluation.features import features_of
from attar.evaluation.models import EvaluatedModel, Features
from attar.evaluation.predictions import file_stem
from attar.evaluation.zero_shot import TASK
from attar.records import Record
from attar.stages.costing import wants_cost
from attar.suites.contestants import Contestant, open_contestants
from attar.suites.labelled import SCORE, LabelledSet, Missing, score
from attar.suites.request import SuiteRequest

log = logging.getLogger(__name__)

SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model said of one data set, and how right that was."""

    on: LabelledSet
    data: EvaluationData
    model: EvaluatedModel
    """With the features of the set's classes."""
    features: Features
    """[N, D]"""
    values: Mapping[str, float]
    """Metric -> value, see `labelled.score`."""

    def record(self, suite: str) -> Record:
        """Return the line of results.jsonl: the suite is its data set, the set its domain."""
        record = make_record(
            self.model,
            self.data,
            TASK,
            domain=self.on.name,
            num_images=len(self.on.images),
            metrics=dict(self.values),
        )
        extra = {**record.extra, "metric": self.on.metric}
        if self.on.lacks:
            extra["partial"] = self.on.lacks
        return replace(record, dataset=suite, extra=extra)


def ask(contestant: Contestant, on: LabelledSet, request: SuiteRequest) -> Answer | None:
    """Measure a model on a data set; None, and a line that says why, where it cannot classify it.

    Its features of the images are kept in OUT/features/ROLE-SET.safetensors.
    """
    config = request.comparison.config
    model = contestant.knowing(on.images.class_names, on.prompts)
    data = evaluation_data(on.images, SPLIT, None, on.name)
    try:
        class_logits(model, np.zeros((0, model.dim), np.float32), data)  # before the long work
    except NotMeasurable as reason:
        log.warning("%s", reason)
        return None
    features = features_of(
        model,
        on.images,
        request.out / "features" / f"{file_stem(model.role, on.name)}.safetensors",
        batch_size=config.batch_size,
        workers=config.workers,
        picture=on.picture,
    )
    values = score(class_logits(model, features, data), on)
    return Answer(on=on, data=data, model=model, features=features, values=values)


def measure_sets(
    request: SuiteRequest, find: Callable[[SuiteRequest], Iterator[LabelledSet | Missing]]
) -> Iterator[list[Record]]:
    """Yield each model's records: one a data set, and their mean under the domain "all".

    What `find` says is missing is told, each in a line with the way to get it.
    """
    contestants = open_contestants(request)
    sets, missing = sort_out(request, find)
    suite = str(request.options.suite)
    for contestant in contestants:
        # An answer is not kept: it holds the features of every image of its set.
        records = [answer.record(suite) for on in sets if (answer := ask(contestant, on, request))]
        if records:
            mean = mean_record(records, [one.name for one in missing])
            yield [*records, mean, *costs_beside(contestant.model, mean, request)]


def costs_beside(model: EvaluatedModel, mean: Record, request: SuiteRequest) -> list[Record]:
    """Return what a model costs, beside its mean over the suite, where costs are compared."""
    asked = request.comparison
    return cost_records(model, [mean]) if wants_cost(asked.config, asked.others) else []


def sort_out(
    request: SuiteRequest, find: Callable[[SuiteRequest], Iterator[LabelledSet | Missing]]
) -> tuple[list[LabelledSet], list[Missing]]:
    """Return the sets that are measured and those that are not, and say why they are not.

    A set of which only a part is there counts as missing, unless parts were asked for.

    Raises:
        UsageError: nothing is left to measure.
    """
    sets: list[LabelledSet] = []
    missing: list[Missing] = []
    for one in find(request):
        found = one if request.options.suite_partial else _whole(one)
        if isinstance(found, Missing):
            missing.append(found)
            log.warning("%s is not measured: %s", found.name, found.reason)
            continue
        if found.lacks:
            log.warning("of %s only a part is measured: %s", found.name, found.lacks)
        sets.append(found)
    if not sets:
        reason = f" ({missing[0].name}: {missing[0].reason})" if len(missing) == 1 else ""
        raise UsageError(
            f"none of the data sets of --suite {request.options.suite} is whole below "
            f"{request.root}{reason}; docs/evaluation-suites.md shows their layouts"
        )
    return sets, missing


def _whole(found: LabelledSet | Missing) -> LabelledSet | Missing:
    if isinstance(found, Missing) or not found.lacks:
        return found
    way_out = "mend it, or measure what is there with --suite-partial"
    return Missing(found.name, f"{found.lacks}; {way_out}")


def mean_record(records: Sequence[Record], missing: Sequence[str], **metrics: float) -> Record:
    """Return the plain mean of a model's data sets, and over which ones it is."""
    mean = float(np.mean([record.metrics[SCORE] for record in records]))
    return replace(
        records[0],
        domain=ALL_DOMAINS,
        metrics={SCORE: mean, **metrics},
        num_images=sum(record.num_images for record in records),
        extra={
            "mean_over": [record.domain for record in records],
            "missing": list(missing),
            "partial": [record.domain for record in records if "partial" in record.extra],
        },
    )
