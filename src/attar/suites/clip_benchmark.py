"""Data sets in CLIP_benchmark's webdataset layout, read where they lie.

NAME/classnames.txt                              one class a line
NAME/zeroshot_classification_templates.txt       one template a line, "{c}" for the class
NAME/dataset_type.txt                            "multilabel", or absent
NAME/test/nshards.txt                            how many tars: 0.tar, 1.tar, ...
NAME/test/0.tar                                  KEY.jpg (png, webp) beside KEY.cls, or KEY.npy
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.data.table import ImageTable
from attar.data.tar_walk import TarPart, TarWalk
from attar.errors import AttarError, UsageError
from attar.members import Member
from attar.prompts import get_templates, read_templates
from attar.records import Record
from attar.suites.labelled import LabelledSet, Listed, Metric, Missing, prompts_for, tabulate
from attar.suites.measuring import measure_sets
from attar.suites.request import SuiteRequest

CLASS_NAMES = "classnames.txt"
TYPE = "dataset_type.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
_IMAGES = ("webp", "png", "jpg", "jpeg")


def clip_benchmark(request: SuiteRequest) -> Iterator[list[Record]]:
    """Measure the data set in CLIP_benchmark's layout at --suite-data, or all those in it."""
    yield from measure_sets(request, _find_all)


def _find_all(request: SuiteRequest) -> Iterator[LabelledSet | Missing]:
    folders = [request.root, *sorted(path for path in request.root.iterdir() if path.is_dir())]
    found = [folder for folder in folders if is_in_layout(folder)]
    if not found:
        raise UsageError(
            f"no folder in {request.root} has CLIP_benchmark's layout: {CLASS_NAMES}, {TEMPLATES} "
            "and test/nshards.txt with 0.tar beside it"
        )
    for folder in found:
        several = _is_multilabel(folder)
        metric: Metric = "map_11_points" if several else "acc1"
        yield read_set(request, folder.resolve().name, folder, metric)


def is_in_layout(folder: Path) -> bool:
    """Say whether a folder is, or began to become, a data set in this layout."""
    return (folder / "test" / "nshards.txt").is_file() or (folder / CLASS_NAMES).is_file()


def read_set(
    request: SuiteRequest, name: str, folder: Path, metric: Metric
) -> LabelledSet | Missing:
    """Read the test split; whatever is wrong with it makes it missing, with the reason."""
    several = _is_multilabel(folder)
    if (metric == "map_11_points") != several:
        wanted = "multilabel" if metric == "map_11_points" else "no multilabel set"
        return Missing(name, f"{folder / TYPE} does not fit: its metric {metric} needs {wanted}")
    try:
        class_names = _lines(folder / CLASS_NAMES)
        chosen = request.options.suite_templates
        templates = get_templates(chosen) if chosen else read_templates(folder / TEMPLATES)
        listed = [
            Listed(
                path=str(Member(str(tar.resolve()), sample.start, sample.end, sample.image)),
                name=f"{tar.name}/{sample.image}",
                labels=sample.labels(len(class_names)),
            )
            for tar in _tars(folder / "test")
            for sample in read_samples(tar, several=several)
        ]
    except AttarError as error:
        return Missing(name, str(error))
    cache = request.out / "files" / f"{name}.parquet"
    images, lacks = tabulate(listed, class_names, cache, several=several)
    if not len(images):
        return Missing(name, lacks or f"the tars in {folder / 'test'} hold no image")
    unfit = _unfit_for(metric, images, folder)
    if unfit:
        return Missing(name, unfit)
    return LabelledSet(
        name=name,
        images=images,
        prompts=prompts_for(class_names, templates),
        metric=metric,
        lacks=lacks,
    )


def _unfit_for(metric: Metric, images: ImageTable, folder: Path) -> str:
    """Say why a metric is not defined on these images; empty where it is."""
    if metric == "roc_auc" and len(images.class_names) != 2:
        place, count = folder / CLASS_NAMES, len(images.class_names)
        return f"{metric} needs two classes, and {place} names {count:,}"
    if metric == "roc_auc" and set(images.labels) != {0, 1}:
        return f"{metric} needs images of both classes, and all are of one"
    if metric == "map_11_points" and not any(images.label_sets):
        return f"{metric} needs images that show a class, and none does"
    return ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a tar and what is beside it."""

    tar: Path
    image: str
    """Its name in the tar."""
    start: int
    end: int
    """The image is bytes `start` up to `end` of the tar."""
    label: bytes
    """The bytes of KEY.cls, a number, or of KEY.npy, a row of C zeros and ones."""
    several: bool
    """Whether it is the latter."""

    def labels(self, num_classes: int) -> tuple[int, ...]:
        """Return the class of the image, or all of its classes.

        Raises:
            AttarError: the label is none, or not one of the classes.
        """
        try:
            if self.several:
                row = np.load(io.BytesIO(self.label), allow_pickle=False)
                if row.shape != (num_classes,):
                    raise ValueError(f"{list(row.shape)} numbers for {num_classes} classes")
                return tuple(np.flatnonzero(row).tolist())
            number = int(self.label.decode())
            if not 0 <= number < num_classes:
                raise ValueError(f"class {number} of {num_classes}")
        except (ValueError, OSError) as error:
            raise AttarError(f"{self.tar}: the label of {self.image} is broken: {error}") from error
        return (number,)


def read_samples(tar: Path, *, several: bool = False) -> list[Sample]:
    """Return the samples of a tar, read once from its beginning to its end.

    Raises:
        AttarError: it is missing, compressed or ends early, or an image has no label beside it.
    """
    labelled_by = "npy" if several else "cls"
    images: dict[str, TarPart] = {}
    labels: dict[str, bytes] = {}
    try:
        with tar.open("rb") as file:
            walk = TarWalk(file)
            for part in walk.parts(lambda extension: extension == labelled_by):
                if part.extension in _IMAGES:
                    images[part.key] = part
                elif part.extension == labelled_by:
                    labels[part.key] = part.data
    except OSError as error:
        raise AttarError(f"{tar} cannot be read ({error.strerror or error})") from error
    if walk.trouble is not None:
        raise AttarError(f"{tar} cannot be read: {walk.trouble}; download it again")
    alone = sorted(images.keys() - labels.keys())
    if alone:
        raise AttarError(
            f"{tar}: {len(alone):,} of {len(images):,} images have no .{labelled_by} beside them, "
            f"first {images[alone[0]].name}; download it again"
        )
    return [
        Sample(
            tar=tar,
            image=part.name,
            start=part.start,
            end=part.end,
            label=labels[key],
            several=several,
        )
        for key, part in images.items()
    ]


def _tars(split: Path) -> list[Path]:
    """Return the tars that nshards.txt promises; AttarError where one is not there."""
    lines = _lines(split / "nshards.txt")
    if len(lines) != 1 or not lines[0].isdigit() or not int(lines[0]):
        raise AttarError(f"{split / 'nshards.txt'} holds {lines}, not the number of tars")
    tars = [split / f"{number}.tar" for number in range(int(lines[0]))]
    absent = [tar.name for tar in tars if not tar.is_file()]
    if absent:
        raise AttarError(
            f"{split} lacks {len(absent):,} of {len(tars):,} tars, first {absent[0]}: download "
            "them again"
        )
    return tars


def _is_multilabel(folder: Path) -> bool:
    file = folder / TYPE
    return file.is_file() and file.read_text(encoding="utf-8").strip().lower() == "multilabel"


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AttarError(f"{path} cannot be read ({reason}); download it again") from error
    return [line.strip() for line in lines if line.strip()]
