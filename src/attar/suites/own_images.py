"""The labelled images of `--data`, for suites that measure on any images."""

from dataclasses import dataclass
from pathlib import Path

from attar.data.classes import ClassList, read_class_list
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.files import read_json
from attar.run import DataConfig, RunFolder
from attar.stages.comparing import Comparison
from attar.stages.embedding import prompts_of
from attar.stages.images import read_image_table
from attar.stages.opening import seen_keys
from attar.suites.request import SuiteRequest


@dataclass(frozen=True, kw_only=True)
class OwnImages:
    """Images of the user's own and how their classes are described."""

    images: ImageTable
    prompts: list[list[str]]
    """[C]"""
    seen: frozenset[str]
    """Keys of all images that one of the models was trained or selected on."""


def read_own_images(request: SuiteRequest) -> OwnImages:
    """Read the images of `--data`.

    Raises:
        UsageError: none are given, or they cannot be read as asked.
    """
    asked = request.comparison
    if not asked.data.data:
        raise UsageError(f"--suite {request.options.suite} needs labelled images: give --data")
    classes = read_class_list(asked.data.classes) if asked.data.classes else None
    images = read_image_table(asked.data, classes, request.out, superset=True)
    baseline = [] if asked.baseline is None else [asked.baseline]
    models = [asked.run, *baseline, *(Path(name) for name in asked.others)]
    prompts = _prompts(asked, classes, images)
    return OwnImages(images=images, prompts=prompts, seen=seen_keys(models))


def _prompts(asked: Comparison, classes: ClassList | None, images: ImageTable) -> list[list[str]]:
    """Return each class's prompts: the run's own where it has them, unless others are asked for."""
    run, templates = RunFolder(asked.run), asked.data.templates
    if templates == DataConfig.templates and run.config.is_file():
        templates = str(run.option("templates") or templates)
        if classes is None and run.classes.is_file():
            known = read_json(run.classes)
            texts = dict(zip(known["names"], known["texts"], strict=True))
            if set(images.class_names) <= set(texts):
                return [list(texts[name]) for name in images.class_names]
    return prompts_of(classes, images, templates)
