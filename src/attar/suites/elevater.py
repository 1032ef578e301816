"""ELEVATER's 20 data sets (Li et al., NeurIPS 2022), each by its own metric."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from attar.data.images import read_image
from attar.evaluation.features import Picture
from attar.records import Record
from attar.suites.clip_benchmark import is_in_layout, read_set
from attar.suites.labelled import LabelledSet, Metric, Missing
from attar.suites.measuring import measure_sets
from attar.suites.request import SuiteRequest
from attar.suites.torchvision_sets import LOADERS, read_torchvision


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One of the 20."""

    folder: str
    """What CLIP_benchmark calls it, which is its folder."""
    metric: Metric = "acc1"
    published: bool = True
    """Whether it can be had in CLIP_benchmark's layout."""
    source: str = ""
    """How else to get it."""
    squeezed: bool = False
    """Whether the whole picture is squeezed into a square: its sides must not be cut off."""


DATA_SETS: dict[str, DataSet] = {
    "caltech101": DataSet(folder="vtab-caltech101", metric="mean_per_class_recall"),
    "cifar10": DataSet(folder="cifar10"),
    "cifar100": DataSet(folder="vtab-cifar100"),
    "country211": DataSet(folder="country211"),
    "dtd": DataSet(folder="vtab-dtd"),
    "eurosat": DataSet(folder="vtab-eurosat"),
    "fer2013": DataSet(folder="fer2013"),
    "fgvc-aircraft": DataSet(folder="fgvc_aircraft", metric="mean_per_class_recall"),
    "food101": DataSet(folder="food101"),
    "gtsrb": DataSet(folder="gtsrb"),
    "hateful-memes": DataSet(
        folder="hateful_memes",
        metric="roc_auc",
        published=False,
        source="the 500 images of dev_seen of the Hateful Memes Challenge (under its licence), "
        "written into CLIP_benchmark's layout with the hateful class second in classnames.txt",
    ),
    "kitti-distance": DataSet(folder="vtab-kitti_closest_vehicle_distance", squeezed=True),
    "mnist": DataSet(folder="mnist"),
    "flowers102": DataSet(folder="vtab-flowers", metric="mean_per_class_recall"),
    "oxford-pets": DataSet(folder="vtab-pets", metric="mean_per_class_recall"),
    "pcam": DataSet(folder="vtab-pcam"),
    "rendered-sst2": DataSet(folder="renderedsst2"),
    "resisc45": DataSet(folder="vtab-resisc45"),
    "stanford-cars": DataSet(folder="cars"),
    "voc2007": DataSet(folder="voc2007_multilabel", metric="map_11_points"),
}


@dataclass(frozen=True)
class Squeezed:
    """Whole pictures as squares, so that a centre crop takes nothing away."""

    paths: tuple[str, ...]

    def __call__(self, row: int) -> Image.Image:
        """Return the picture of a row, its longer side squeezed to the shorter one."""
        image = read_image(self.paths[row])
        side = min(image.size)
        return image.resize((side, side), Image.Resampling.BICUBIC)


def elevater(request: SuiteRequest) -> Iterator[list[Record]]:
    """Measure those of the 20 that are there; "all" is the mean over them and says which they are.

    Each is looked for in CLIP_benchmark's layout first, then where torchvision puts it.
    """
    yield from measure_sets(request, lambda asked: (_find(asked, name) for name in DATA_SETS))


def _find(request: SuiteRequest, name: str) -> LabelledSet | Missing:
    of = DATA_SETS[name]
    for folder in (of.folder, f"wds_{of.folder}", name):
        if is_in_layout(request.root / folder):
            found = read_set(request, name, request.root / folder, of.metric)
            if of.squeezed and isinstance(found, LabelledSet):
                picture: Picture = Squeezed(found.images.paths)
                found = replace(found, picture=picture)
            return found
    read = read_torchvision(request, name, of.metric)
    return Missing(name, f"not there; get {how_to_get(request, name)}") if read is None else read


def how_to_get(request: SuiteRequest, name: str) -> str:
    """Return where a data set comes from and where it goes."""
    of = DATA_SETS[name]
    ways = [of.source] if of.source else []
    if of.published:
        place = request.root / of.folder
        ways.append(f"clip-benchmark/wds_{of.folder} from the Hugging Face Hub into {place}")
    if name in LOADERS:
        ways.append(f"what torchvision reads, as {request.root / LOADERS[name].folder}")
    return ", or ".join(ways)
