"""The data sets of ELEVATER that torchvision reads, with class names and a fixed test split."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision import datasets

from attar.data.table import ImageTable
from attar.prompts import get_templates
from attar.suites.labelled import LabelledSet, Metric, Missing, prompts_for
from attar.suites.request import SuiteRequest

_DIGITS = tuple(str(digit) for digit in range(10))
_EXPRESSIONS = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")
_VOC = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
_IN_WORDS = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "monitor"}
_TRAFFIC_SIGNS = (
    *(f"speed limit {limit} km/h" for limit in (20, 30, 50, 60, 70, 80)),
    "end of speed limit 80 km/h", "speed limit 100 km/h", "speed limit 120 km/h", "no overtaking",
    "no overtaking by trucks", "right of way at the next crossing", "priority road", "yield",
    "stop", "no vehicles", "no trucks", "no entry", "danger", "bend to the left",
    "bend to the right", "double bend", "bumpy road", "slippery road", "road narrows on the right",
    "road works", "traffic lights", "pedestrians", "children", "bicycles", "ice or snow",
    "wild animals", "end of all limits", "turn right", "turn left", "straight ahead",
    "straight ahead or right", "straight ahead or left", "keep right", "keep left", "roundabout",
    "end of no overtaking", "end of no overtaking by trucks",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Loader:
    """How torchvision reads the test split of a data set."""

    folder: str
    """What torchvision looks for below its root."""
    open: Callable[[Path], Any]
    """Root -> data set; nothing is downloaded."""
    class_names: tuple[str, ...] = ()
    """[C]; empty: as torchvision names them."""
    template: str = "a photo of a {c}."
    labels: Callable[[Any], tuple[int, ...]] = lambda target: (int(target),)
    """What torchvision says of an image -> its class, or all of its classes."""
    several: bool = False


def _classes_shown(target: Any) -> tuple[int, ...]:
    """Return the classes in a picture of VOC 2007, without those that are only hard to see."""
    shown = target["annotation"]["object"]
    return tuple(sorted({_VOC.index(o["name"]) for o in shown if o.get("difficult") != "1"}))


LOADERS: dict[str, Loader] = {
    "cifar10": Loader(
        folder="cifar-10-batches-py", open=lambda root: datasets.CIFAR10(root, train=False)
    ),
    "cifar100": Loader(
        folder="cifar-100-python", open=lambda root: datasets.CIFAR100(root, train=False)
    ),
    "dtd": Loader(
        folder="dtd",
        open=lambda root: datasets.DTD(root, split="test"),
        template="a photo of a {c} texture.",
    ),
    "fer2013": Loader(
        folder="fer2013",
        open=lambda root: datasets.FER2013(root, split="test"),
        class_names=_EXPRESSIONS,
        template="a photo of a person who looks {c}.",
    ),
    "fgvc-aircraft": Loader(
        folder="fgvc-aircraft-2013b",
        open=lambda root: datasets.FGVCAircraft(root, split="test"),
        template="a photo of a {c}, a type of aircraft.",
    ),
    "food101": Loader(
        folder="food-101",
        open=lambda root: datasets.Food101(root, split="test"),
        template="a photo of {c}, a type of food.",
    ),
    "gtsrb": Loader(
        folder="gtsrb",
        open=lambda root: datasets.GTSRB(root, split="test"),
        class_names=_TRAFFIC_SIGNS,
        template='a photo of a "{c}" traffic sign.',
    ),
    "mnist": Loader(
        folder="MNIST",
        open=lambda root: datasets.MNIST(root, train=False),
        class_names=_DIGITS,
        template='a photo of the number "{c}".',
    ),
    "flowers102": Loader(
        folder="flowers-102",
        open=lambda root: datasets.Flowers102(root, split="test"),
        template="a photo of a {c}, a type of flower.",
    ),
    "oxford-pets": Loader(
        folder="oxford-iiit-pet",
        open=lambda root: datasets.OxfordIIITPet(root, split="test"),
        template="a photo of a {c}, a type of pet.",
    ),
    "pcam": Loader(
        folder="pcam",
        open=lambda root: datasets.PCAM(root, split="test"),
        class_names=("lymph node", "lymph node containing metastatic tumor tissue"),
        template="this is a photo of {c}.",
    ),
    "rendered-sst2": Loader(
        folder="rendered-sst2",
        open=lambda root: datasets.RenderedSST2(root, split="test"),
        template="a {c} review of a movie.",
    ),
    "stanford-cars": Loader(
        folder="stanford_cars", open=lambda root: datasets.StanfordCars(root, split="test")
    ),
    "voc2007": Loader(
        folder="VOCdevkit/VOC2007",
        open=lambda root: datasets.VOCDetection(root, year="2007", image_set="test"),
        class_names=tuple(_IN_WORDS.get(name, name) for name in _VOC),
        labels=_classes_shown,
        several=True,
    ),
}


@dataclass(frozen=True)
class TorchvisionPictures:
    """The pictures of a torchvision data set by row."""

    dataset: Any

    def __call__(self, row: int) -> Image.Image:
        """Return the picture of a row in RGB."""
        image: Image.Image = self.dataset[row][0]
        return image.convert("RGB")


def read_torchvision(
    request: SuiteRequest, name: str, metric: Metric
) -> LabelledSet | Missing | None:
    """Read a set through torchvision from --suite-data or a folder of its name there.

    None where no loader knows it or nothing of it is there; what torchvision cannot read to the
    last image is missing, with the reason.
    """
    loader = LOADERS.get(name)
    if loader is None:
        return None
    roots = (
        root for root in (request.root, request.root / name) if (root / loader.folder).is_dir()
    )
    root = next(roots, None)
    if root is None:
        return None
    try:
        dataset = loader.open(root)
        images = _tabulate(dataset, loader, root)
    # Each loader raises what it likes on files that are absent, cut or not as published.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Missing(name, f"torchvision cannot read {root / loader.folder} ({reason})")
    chosen = request.options.suite_templates
    templates: Sequence[str] = get_templates(chosen) if chosen else (loader.template,)
    return LabelledSet(
        name=name,
        images=images,
        prompts=prompts_for(images.class_names, templates),
        metric=metric,
        picture=TorchvisionPictures(dataset),
    )


def _tabulate(dataset: Any, loader: Loader, root: Path) -> ImageTable:
    """Decode every image once; a set that is kept as one array has no files to hash."""
    keys, labels = [], []
    for row in range(len(dataset)):
        image, target = dataset[row]
        keys.append(hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest())
        labels.append(loader.labels(target))
    if not keys:
        raise ValueError("it holds no image")
    none = (None,) * len(keys)
    return ImageTable(
        paths=(str(root / loader.folder),) * len(keys),
        names=tuple(map(str, range(len(keys)))),
        keys=tuple(keys),
        labels=tuple(-1 if loader.several else of[0] for of in labels),
        domains=(-1,) * len(keys),
        captions=none,
        splits=none,
        class_names=loader.class_names or tuple(dataset.classes),
        label_sets=tuple(labels) if loader.several else (),
    )
