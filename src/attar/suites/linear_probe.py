"""The suite `linear-probe`: what a linear classifier reads from each model's features."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from attar.data.table import ImageTable
from attar.evaluation.cost import cost_records
from attar.evaluation.evidence import EvaluationData, Evidence, NotMeasurable, class_logits
from attar.evaluation.features import features_of
from attar.evaluation.models import TEACHER, EvaluatedModel, from_store
from attar.evaluation.predictions import file_stem
from attar.evaluation.probing import ProbeData, measure_logits, possible_shots, probe_model
from attar.evaluation.zero_shot import TASK as ZERO_SHOT
from attar.evaluation.zero_shot import zero_shot
from attar.records import Record
from attar.stages.costing import wants_cost
from attar.store.store import Store
from attar.suites.contestants import Contestant, open_contestants
from attar.suites.own_images import read_own_images
from attar.suites.probe_splits import probe_data
from attar.suites.request import SuiteRequest

log = logging.getLogger(__name__)


def linear_probe(request: SuiteRequest) -> Iterator[list[Record]]:
    """Yield each model's records: zero-shot, its probes, and beside other makers' its cost.

    The images are those of `--data`; `probe_data` says which are learnt from.

    Raises:
        UsageError: no images, or none that can be divided as asked.
    """
    own = read_own_images(request)
    data = probe_data(own.images, request.comparison.data.data, own.seen, request.probe)
    # Refused, or left out, before the long work.
    shots = tuple(number for number in possible_shots(data, request.probe) if number is not None)
    request = replace(request, probe=replace(request.probe, shots=shots))
    for contestant in open_contestants(request):
        yield _measure(_answering(contestant, data, own.prompts), data, request)


def _measure(model: EvaluatedModel, data: ProbeData, request: SuiteRequest) -> list[Record]:
    """Return all records of one model; what it cannot be asked is said and left out."""
    records: list[Record] = []
    for test in data.tests.values():
        records += _zero_shot(model, test, request)
    try:
        config = request.comparison.config
        records += probe_model(model, data, request.out, request.probe, config)
    except NotMeasurable as reason:
        log.warning("%s", reason)
    asked = request.comparison
    if not wants_cost(asked.config, asked.others):
        return records
    of_splits = {record.split: record for record in records}
    return [*records, *cost_records(model, list(of_splits.values()))]


def _zero_shot(model: EvaluatedModel, test: EvaluationData, request: SuiteRequest) -> list[Record]:
    """Classify the tested images without any that was learnt from: where the probe begins."""
    config = request.comparison.config
    path = request.out / "features" / f"{file_stem(model.role, test.split)}.safetensors"
    try:
        features = features_of(
            model, test.table, path, batch_size=config.batch_size, workers=config.workers
        )
        logits = class_logits(model, features, test)
    except NotMeasurable as reason:
        log.warning("%s", reason)
        return []
    if test.table.has_label_sets:
        return measure_logits(model, test, ZERO_SHOT, [logits], {})
    return zero_shot(Evidence(model=model, features=features, logits=logits), None, test)


def _answering(
    contestant: Contestant, data: ProbeData, prompts: Sequence[Sequence[str]]
) -> EvaluatedModel:
    """Return a model that knows the classes; a teacher that has seen every image is not asked."""
    model = contestant.knowing(data.train.class_names, prompts)
    texts = contestant.texts
    if model.role != TEACHER or texts is None or not (texts.store / "store.json").is_file():
        return model
    store = Store.open(texts.store)
    tables: list[ImageTable] = [data.train, data.val, *(t.table for t in data.tests.values())]
    known = all(store.has_images(table.keys).all() for table in tables)
    return replace(model, lookup=from_store(store).lookup) if known else model
