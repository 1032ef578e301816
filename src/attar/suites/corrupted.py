"""attar-C: how accuracy falls as the pictures of any labelled data set get worse."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation import metrics
from attar.evaluation.evidence import (
    ALL_DOMAINS,
    EvaluationData,
    NotMeasurable,
    class_logits,
    evaluation_data,
    make_record,
)
from attar.evaluation.features import features_of
from attar.evaluation.models import EvaluatedModel
from attar.evaluation.predictions import file_stem
from attar.evaluation.zero_shot import TASK
from attar.records import Record
from attar.suites.contestants import open_contestants
from attar.suites.corruption_kinds import CORRUPTIONS, corrupt, find_corruption
from attar.suites.own_images import OwnImages, read_own_images
from attar.suites.request import SuiteRequest

log = logging.getLogger(__name__)

SPLIT = "attar-C"
CLEAN = "clean"
NOTE = "attar-C is attar's own: not comparable with a published mCE of ImageNet-C"


@dataclass(frozen=True)
class CorruptedPictures:
    """The pictures of a table, each corrupted in its own way; severity 0 leaves them clean."""

    paths: tuple[str, ...]
    keys: tuple[str, ...]
    kind: str
    severity: int
    seed: int

    def __call__(self, row: int) -> Image.Image:
        """Return the picture of a row."""
        image = read_image(self.paths[row])
        return corrupt(image, self.kind, self.severity, key=self.keys[row], seed=self.seed)


def corruptions(request: SuiteRequest) -> Iterator[list[Record]]:
    """Measure each kind at each severity on the labelled images of `--data`.

    A kind's record is the mean over its severities, with the accuracy at each one; "all" is the
    mean over kinds, "clean" the same pictures cropped and resized alike but not corrupted. Images
    that the run learnt from are left out.

    Raises:
        UsageError: no --data, images without a label each, or an unknown kind.
    """
    options = request.options
    kinds = options.suite_kinds or tuple(CORRUPTIONS)
    for kind in kinds:
        find_corruption(kind)
    contestants = open_contestants(request)
    own = read_own_images(request)
    images = _drawn(_unseen(own), options.suite_limit, options.suite_seed)
    log.warning("%s", NOTE)
    dataset = request.comparison.data.name
    data = evaluation_data(images, SPLIT, None, dataset)
    for contestant in contestants:
        model = contestant.knowing(images.class_names, own.prompts)
        records = _measure(model, data, request, kinds)
        if records:
            yield records


def _unseen(own: OwnImages) -> ImageTable:
    """Return the labelled images that no model was trained or selected on.

    Raises:
        UsageError: there is none, or images have several labels.
    """
    images = own.images
    if images.has_label_sets or not images.has_labels:
        raise UsageError("--suite corruptions needs images with one label each")
    rows = [
        row
        for row, (key, label) in enumerate(zip(images.keys, images.labels, strict=True))
        if label >= 0 and key not in own.seen
    ]
    if not rows:
        raise UsageError("the models were trained on all of these images; give others to --data")
    if len(rows) < len(images):
        left_out = f"{len(images) - len(rows):,} of {len(images):,} images"
        log.warning("left out %s: a model was trained on them, or they have no label", left_out)
    return images.select(rows)


def _drawn(images: ImageTable, limit: int | None, seed: int) -> ImageTable:
    """Return the images, or `limit` of them drawn at random, in their order."""
    if limit is None or limit >= len(images):
        return images
    rows = np.random.default_rng(seed).permutation(len(images))[:limit]
    return images.select(np.sort(rows).tolist())


def _measure(
    model: EvaluatedModel, data: EvaluationData, request: SuiteRequest, kinds: Sequence[str]
) -> list[Record]:
    """Return one model's records: clean, each kind, and all kinds together."""
    severities = request.options.suite_severities
    try:
        clean = _accuracy(model, data, request, CLEAN, 0)
    except NotMeasurable as reason:
        log.warning("%s", reason)
        return []
    by_kind = {
        kind: {severity: _accuracy(model, data, request, kind, severity) for severity in severities}
        for kind in kinds
    }
    means = {kind: float(np.mean(list(values.values()))) for kind, values in by_kind.items()}
    overall = float(np.mean(list(means.values())))
    found = {CLEAN: {"acc1": clean}}
    for kind, values in by_kind.items():
        found[kind] = {"acc1": means[kind]}
        found[kind] |= {f"acc1_severity_{severity}": acc for severity, acc in values.items()}
    found[ALL_DOMAINS] = {"acc1": overall, "kept": overall / clean if clean else 0.0}
    return [_record(model, data, domain, values, request) for domain, values in found.items()]


def _accuracy(
    model: EvaluatedModel, data: EvaluationData, request: SuiteRequest, kind: str, severity: int
) -> float:
    """Return the accuracy on the pictures of one kind and severity; its features are kept."""
    images, seed = data.table, request.options.suite_seed
    config = request.comparison.config
    # Features are told apart by keys: a corrupted picture is another one.
    keys = tuple(f"{key}/{kind}/{severity}/{seed}" for key in images.keys)
    name = f"{SPLIT}_{kind}_{severity}"
    features = features_of(
        model,
        replace(images, keys=keys),
        request.out / "features" / f"{file_stem(model.role, name)}.safetensors",
        batch_size=config.batch_size,
        workers=config.workers,
        picture=CorruptedPictures(images.paths, images.keys, kind, severity, seed),
    )
    return metrics.acc1(class_logits(model, features, data), data.labels)


def _record(
    model: EvaluatedModel,
    data: EvaluationData,
    domain: str,
    values: dict[str, float],
    request: SuiteRequest,
) -> Record:
    record = make_record(
        model, data, TASK, domain=domain, num_images=len(data.table), metrics=values
    )
    options = request.options
    extra = {"seed": options.suite_seed, "severities": list(options.suite_severities), "note": NOTE}
    return replace(record, extra={**record.extra, **extra})
