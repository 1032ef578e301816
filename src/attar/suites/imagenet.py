"""ImageNet, and the five sets that ask whether what was learnt there holds elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from attar.data.images import read_image
from attar.errors import AttarError
from attar.evaluation import metrics
from attar.evaluation.evidence import class_logits, evaluation_data
from attar.prompts import get_templates
from attar.records import Record
from attar.suites import imagenet_classes as classes
from attar.suites.contestants import Contestant, open_contestants
from attar.suites.effective_robustness import effective_robustness
from attar.suites.folders import Published, find_place, read_class_folders
from attar.suites.imagenet_classes import SetClasses
from attar.suites.labelled import LabelledSet, Missing, prompts_for
from attar.suites.measuring import (
    SPLIT,
    Answer,
    ask,
    costs_beside,
    mean_record,
    measure_sets,
    sort_out,
)
from attar.suites.request import SuiteRequest

TEMPLATES = "openai-80"
EFFECTIVE = "effective_robustness"
IMAGENET = Published(
    name="imagenet",
    places=("imagenet/val", "imagenet", "val", "."),
    num_images=50_000,
    source="the validation images of ILSVRC 2012 (image-net.org, after registration), sorted into "
    "one folder a WordNet id, as imagenet/val/n01440764/*.JPEG",
)
OBJECTNET = Published(
    name="objectnet",
    places=("objectnet-1.0/images", "objectnet/images"),
    num_images=18_574,
    source="objectnet-1.0.zip (objectnet.dev), unpacked with its folders images and mappings",
)


@dataclass(frozen=True)
class Variant:
    """A set in class folders of ImageNet's classes."""

    published: Published
    classes: Callable[[], SetClasses]


VARIANTS = (
    Variant(
        Published(
            name="imagenet-v2",
            places=("imagenetv2-matched-frequency-format-val", "imagenet-v2", "imagenetv2"),
            num_images=10_000,
            source="imagenetv2-matched-frequency.tar.gz (the data set vaishaal/ImageNetV2 on the "
            "Hugging Face Hub), unpacked",
        ),
        classes.numbered_classes,
    ),
    Variant(
        Published(
            name="imagenet-a",
            places=("imagenet-a",),
            num_images=7_500,
            source="imagenet-a.tar (github.com/hendrycks/natural-adv-examples), unpacked",
        ),
        classes.adversarial_classes,
    ),
    Variant(
        Published(
            name="imagenet-r",
            places=("imagenet-r",),
            num_images=30_000,
            source="imagenet-r.tar (github.com/hendrycks/imagenet-r), unpacked",
        ),
        classes.rendition_classes,
    ),
    Variant(
        Published(
            name="imagenet-sketch",
            places=("sketch", "imagenet-sketch", "imagenet_sketch"),
            num_images=50_889,
            source="ImageNet-Sketch.zip (github.com/HaohanWang/ImageNet-Sketch), unpacked",
        ),
        classes.all_classes,
    ),
)


@dataclass(frozen=True)
class WithoutBorder:
    """ObjectNet's pictures without the red border that marks them; two pixels are cut off."""

    paths: tuple[str, ...]

    def __call__(self, row: int) -> Image.Image:
        """Return the picture of a row."""
        image = read_image(self.paths[row])
        return image.crop((2, 2, image.width - 2, image.height - 2))


@dataclass
class _Row:
    """A model's number on one set, and what it does at home."""

    record: Record
    at_home: tuple[float, int] | None = None
    """Accuracy on ImageNet's images of the set's classes, and how many they are."""


def imagenet(request: SuiteRequest) -> Iterator[list[Record]]:
    """Measure ImageNet's validation images."""
    yield from measure_sets(request, lambda asked: iter([find_imagenet(asked)]))


def robustness(request: SuiteRequest) -> Iterator[list[Record]]:
    """Measure ImageNet and its variants; "all" is the plain mean of the variants alone.

    Where ImageNet is there and three models or more are compared, each variant's records also say
    the effective robustness; at home is ImageNet's images of the variant's own classes, ranked
    among these.
    """
    contestants = open_contestants(request)
    sets, missing = sort_out(request, find_all)
    measured = [(one, rows) for one in contestants if (rows := _ask_all(one, sets, request))]
    _add_effective_robustness([rows for _, rows in measured])
    absent = [one.name for one in missing if one.name != IMAGENET.name]
    for contestant, rows in measured:
        records = [*(row.record for row in rows), *_mean_of_variants(rows, absent)]
        yield [*records, *costs_beside(contestant.model, records[-1], request)]


def _mean_of_variants(rows: Sequence[_Row], absent: Sequence[str]) -> list[Record]:
    """Return the record "all" of one model, or nothing where no variant was measured."""
    variants = [row.record for row in rows if row.record.domain != IMAGENET.name]
    if not variants:
        return []
    beyond = [record.metrics.get(EFFECTIVE) for record in variants]
    known = [value for value in beyond if value is not None]
    more = {EFFECTIVE: float(np.mean(known))} if len(known) == len(variants) else {}
    return [mean_record(variants, absent, **more)]


def find_all(request: SuiteRequest) -> Iterator[LabelledSet | Missing]:
    """Yield ImageNet, its variants and ObjectNet, as far as they are there."""
    yield find_imagenet(request)
    for variant in VARIANTS:
        yield _find(request, variant.published, variant.classes())
    yield _find_objectnet(request)


def find_imagenet(request: SuiteRequest) -> LabelledSet | Missing:
    """Return ImageNet's validation images."""
    return _find(request, IMAGENET, classes.all_classes())


def _find_objectnet(request: SuiteRequest) -> LabelledSet | Missing:
    for place in OBJECTNET.places:
        images = request.root / place
        if images.is_dir():
            try:
                shared = classes.objectnet_classes(images.parent / "mappings")
            except AttarError as error:
                return Missing(OBJECTNET.name, str(error))
            found = _find(request, OBJECTNET, shared)
            if isinstance(found, Missing):
                return found
            return replace(found, picture=WithoutBorder(found.images.paths))
    return _absent(request, OBJECTNET)


def _find(request: SuiteRequest, published: Published, known: SetClasses) -> LabelledSet | Missing:
    place = find_place(request.root, published, tuple(known.folders))
    if place is None:
        return _absent(request, published)
    cache = request.out / "files" / f"{published.name}.parquet"
    images, lacks = read_class_folders(place, known.folders, known.names, published, cache)
    if not len(images):
        return Missing(published.name, lacks)
    templates = get_templates(request.options.suite_templates or TEMPLATES)
    return LabelledSet(
        name=published.name,
        images=images,
        prompts=prompts_for(known.names, templates),
        imagenet=known.imagenet,
        lacks=lacks,
    )


def _absent(request: SuiteRequest, published: Published) -> Missing:
    place = request.root / published.places[0]
    return Missing(published.name, f"{place} is not there; get {published.source}")


def _ask_all(
    contestant: Contestant, sets: Sequence[LabelledSet], request: SuiteRequest
) -> list[_Row]:
    """Measure one model on every set; its features of ImageNet also say how good it is at home."""
    home: Answer | None = None
    rows = []
    for on in sets:
        answer = ask(contestant, on, request)
        if answer is None:
            continue
        row = _Row(answer.record(str(request.options.suite)))
        if on.name == IMAGENET.name:
            home = answer
        elif home is not None:
            row.at_home = accuracy_at_home(home, answer)
        rows.append(row)
    return rows


def accuracy_at_home(home: Answer, away: Answer) -> tuple[float, int] | None:
    """Return the accuracy on the images of ImageNet whose class the other set has, and their count.

    They are ranked among the other set's classes. None where there is no such image.
    """
    label_of = {n: label for label, of in enumerate(away.on.imagenet) for n in of}
    images = home.on.images
    rows = [row for row, label in enumerate(images.labels) if label in label_of]
    if not rows:
        return None
    labels = tuple(label_of[images.labels[row]] for row in rows)
    table = replace(images.select(rows), labels=labels, class_names=away.on.images.class_names)
    data = evaluation_data(table, SPLIT, None, home.on.name)
    logits = class_logits(away.model, home.features[rows], data)
    return metrics.acc1(logits, np.asarray(labels)), len(rows)


def _add_effective_robustness(tables: Sequence[Sequence[_Row]]) -> None:
    """Fit one line a set through all models that were measured on it, and write what is above."""
    names = dict.fromkeys(row.record.domain for table in tables for row in table)
    for name in names:
        rows = [row for table in tables for row in table if row.record.domain == name]
        known = [(row, row.at_home) for row in rows if row.at_home is not None]
        if not known:
            continue
        home = np.array([at_home[0] for _, at_home in known])
        away = np.array([row.record.metrics["acc1"] for row, _ in known])
        beyond = effective_robustness(home, away, (known[0][1][1], known[0][0].record.num_images))
        for place, (row, at_home) in enumerate(known):
            values = {**row.record.metrics, "imagenet_acc1": at_home[0]}
            if beyond is not None:
                values[EFFECTIVE] = float(beyond[place])
            row.record = replace(row.record, metrics=values)
