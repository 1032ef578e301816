"""The suites by name: one function (SuiteRequest) -> records of one model after the other."""

import logging
from collections.abc import Sequence
from pathlib import Path

from attar.errors import UsageError, unknown_name
from attar.evaluation.evidence import NotMeasurable
from attar.evaluation.tasks import replace_records
from attar.records import Record, read_records
from attar.suites.clip_benchmark import clip_benchmark
from attar.suites.corrupted import corruptions
from attar.suites.elevater import elevater
from attar.suites.imagenet import imagenet, robustness
from attar.suites.linear_probe import linear_probe
from attar.suites.request import Suite, SuiteRequest

log = logging.getLogger(__name__)

SUITES: dict[str, Suite] = {
    "imagenet": imagenet,
    "robustness": robustness,
    "elevater": elevater,
    "clip-benchmark": clip_benchmark,
    "corruptions": corruptions,
    "linear-probe": linear_probe,
}


def find_suite(name: str) -> Suite:
    """Return a suite by name; an unknown one is a UsageError with the nearest names."""
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    return SUITES[name]


def run_suite(request: SuiteRequest) -> Path:
    """Measure a suite; return OUT/results.jsonl, to which every model's records were added.

    Raises:
        UsageError: an unknown suite, or one that cannot be measured as asked.
        NotMeasurable: no model could be measured on any of its data sets.
    """
    name = request.options.suite
    if name is None:
        raise UsageError("no suite is named: give --suite NAME")
    results = request.out / "results.jsonl"
    measured: list[Record] = []
    for records in find_suite(name)(request):
        replace_records(results, records)
        measured += records
    if not measured:
        raise NotMeasurable(f"--suite {name}: no model can be measured on these data")
    _warn_of_older(results, measured)
    return results


def _warn_of_older(results: Path, measured: Sequence[Record]) -> None:
    """Name the rows of the file that an earlier command left and that are over other images."""
    images = {(one.dataset, one.split, one.domain): one.num_images for one in measured}
    older = dict.fromkeys(
        f"{one.role} ({one.task})"
        for one in read_records(results)
        if one.num_images != images.get((one.dataset, one.split, one.domain), one.num_images)
    )
    if older:
        log.warning(
            "%s also holds results of an earlier command over another number of images, which do "
            "not compare: %s; give another --out to keep them apart",
            results,
            ", ".join(older),
        )
