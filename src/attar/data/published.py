"""The benchmarks of domain generalisation, recognised by the folders that they are published as.

A folder is taken for a benchmark when at least half of its domains and half of its classes are
there by name. Names are then those of DomainBed, however a copy spells them, so that the splits,
the prompts and the tables of two copies agree. What is missing is said, and the layout is then
"part of" the benchmark: half a download would give numbers that look like the benchmark's.
"""

import gzip
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

Parts = tuple[str, ...]
"""A file's path below the data root, folder by folder."""

_SPLIT_FOLDERS = ("train", "val", "crossval", "test", "full")
"""Folders that some copies put between domain and class; `full` holds all that the others do."""

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published dataset: its domains and classes under DomainBed's names."""

    name: str
    domains: Mapping[str, Sequence[str]]
    """Name -> what other copies call it."""
    classes: Mapping[str, Sequence[str]]
    """Likewise."""
    duplicates: bool = False
    """Whether a list of duplicates belongs to it, which DomainBed leaves out."""
    part_of_more: bool = False
    """Whether the images come from more domains and classes than the benchmark uses."""


@dataclass(frozen=True, kw_only=True)
class PublishedImage:
    """One image with the benchmark's names."""

    parts: Parts
    domain: str
    label: str
    name: str
    """Its path under these names and without the folders around everything: what images are sorted
    and told odd from even by is then the same in every copy."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A recognised folder."""

    benchmark: Benchmark
    images: tuple[PublishedImage, ...]
    left_out: str = ""
    """What the benchmark does without, in words."""

    @property
    def layout(self) -> str:
        """The benchmark's name, and what was left out."""
        name = f"part of {self.benchmark.name}" if self.missing else self.benchmark.name
        return f"{name} without {self.left_out}" if self.left_out else name

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """The domains, and the classes of other domains, that have no image."""
        present: dict[str, set[str]] = defaultdict(set)
        for image in self.images:
            present[image.domain].add(image.label)
        domains = [f"domain {name!r}" for name in self.benchmark.domains if name not in present]
        classes = [
            f"class {label!r} of domain {name!r}"
            for name in self.benchmark.domains
            for label in self.benchmark.classes
            if name in present and label not in present[name]
        ]
        return (*domains, *classes)


def find_published(found: Sequence[Parts]) -> Published | None:
    """Return the benchmark that a folder of images is, or None when it is none.

    `found` are the paths of its images, of any depth; a single folder around everything (`kfold`,
    `OfficeHomeDataset_10072016`) is looked into.
    """
    wrapped = _wrapping_folders(found)
    whole = {index: _domain_class(parts[wrapped:]) for index, parts in enumerate(found)}
    for benchmark in benchmarks():
        domain_of, class_of = _names(benchmark.domains), _names(benchmark.classes)
        images = []
        for index, names in whole.items():
            domain, label = (None, None) if names is None else names
            known = domain_of.get(_plain(domain)), class_of.get(_plain(label))
            if known[0] is not None and known[1] is not None:
                images.append(_image(found[index], known[0], known[1], wrapped))
        others = len(found) - len(images)
        enough = _half({i.domain for i in images}, benchmark.domains)
        enough = enough and _half({i.label for i in images}, benchmark.classes)
        if enough and (benchmark.part_of_more or not others):
            return _published(benchmark, images, others)
    return None


def _image(parts: Parts, domain: str, label: str, wrapped: int) -> PublishedImage:
    between, file = parts[wrapped + 1 : -2], parts[-1]
    name = "/".join((domain, *between, label, file))
    return PublishedImage(parts=parts, domain=domain, label=label, name=name)


def warning_of(published: Published, root: Path) -> str:
    """Return what a user must know of an incomplete benchmark; nothing of a complete one."""
    missing = published.missing
    if not missing:
        return ""
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    return (
        f"{root} has the layout of {published.benchmark.name} but lacks "
        f"{', '.join(missing[:_SHOWN])}{more}: unless this is a part on purpose, complete the "
        "download"
    )


def _published(benchmark: Benchmark, images: list[PublishedImage], others: int) -> Published:
    notes = [f"{others:,} images of other domains or classes"] if others else []
    split_folders = {image.domain for image in images if "full" in image.parts[:-1]}
    kept = [
        image for image in images if image.domain not in split_folders or "full" in image.parts[:-1]
    ]
    if len(kept) < len(images):
        notes.append(f"{len(images) - len(kept):,} copies in train, val or test beside full")
    if benchmark.duplicates:
        listed = _domainnet_duplicates()
        unique = [i for i in kept if (i.domain, i.label, i.parts[-1]) not in listed]
        if len(unique) < len(kept):
            notes.append(f"{len(kept) - len(unique):,} listed duplicates")
        kept = unique
    return Published(benchmark=benchmark, images=tuple(kept), left_out=" and ".join(notes))


def _wrapping_folders(found: Sequence[Parts]) -> int:
    """Return how many folders, one in the other, lie around everything else."""
    count = 0
    shortest = min(map(len, found), default=0)
    while shortest - count > 3 and len({parts[count] for parts in found}) == 1:
        count += 1
    return count


def _domain_class(parts: Parts) -> tuple[str, str] | None:
    """Return the folders that stand for domain and class, or None where the depth is another."""
    if len(parts) == 3:
        return parts[0], parts[1]
    if len(parts) == 4 and parts[1].casefold() in _SPLIT_FOLDERS:
        return parts[0], parts[2]
    return None


def _half(present: set[str], wanted: Mapping[str, Sequence[str]]) -> bool:
    return 2 * len(present) >= len(wanted)


@cache
def _plain(name: str | None) -> str | None:
    """Return the form in which folder names are compared: "Real World" = "real_world"."""
    return None if name is None else "".join(c for c in name.casefold() if c.isalnum())


def _names(names: Mapping[str, Sequence[str]]) -> dict[str | None, str]:
    return {_plain(one): name for name, others in names.items() for one in (name, *others)}


_PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")

_VLCS_CLASSES = ("bird", "car", "chair", "dog", "person")

_OFFICE_HOME_CLASSES = """
Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards
Computer Couch Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder
Fork Glasses Hammer Helmet Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug
Notebook Oven Pan Paper_Clip Pen Pencil Postit_Notes Printer Push_Pin Radio Refrigerator Ruler
Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon TV Table Telephone ToothBrush Toys
Trash_Can Webcam
"""

_TERRA_INCOGNITA_CLASSES = """
bird bobcat cat coyote dog empty opossum rabbit raccoon squirrel
"""


def _as_they_are(names: Iterable[str]) -> dict[str, Sequence[str]]:
    return dict.fromkeys(names, ())


@cache
def benchmarks() -> tuple[Benchmark, ...]:
    """Return the five datasets of DomainBed that are made of photographs and drawings."""
    return (
        Benchmark(
            name="PACS",
            domains=_as_they_are(("art_painting", "cartoon", "photo", "sketch")),
            classes=_as_they_are(_PACS_CLASSES),
        ),
        Benchmark(
            name="VLCS",
            domains={
                "Caltech101": ("CALTECH",),
                "LabelMe": (),
                "SUN09": ("SUN",),
                "VOC2007": ("PASCAL", "VOC"),
            },
            # The split copies number their class folders.
            classes={name: (str(number),) for number, name in enumerate(_VLCS_CLASSES)},
        ),
        Benchmark(
            name="OfficeHome",
            domains=_as_they_are(("Art", "Clipart", "Product", "Real World")),
            classes=_as_they_are(_OFFICE_HOME_CLASSES.split()),
        ),
        Benchmark(
            name="TerraIncognita",
            domains={f"location_{n}": (f"L{n}", str(n)) for n in (38, 43, 46, 100)},
            classes=_as_they_are(_TERRA_INCOGNITA_CLASSES.split()),
            part_of_more=True,
        ),
        Benchmark(
            name="DomainNet",
            domains=_as_they_are(
                ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
            ),
            classes=_as_they_are(_asset("classes.txt").decode().split()),
            duplicates=True,
        ),
    )


@cache
def _domainnet_duplicates() -> frozenset[tuple[str, str, str]]:
    """Return (domain, class, file) of the images that occur twice, as DomainBed lists them."""

    def read() -> Iterator[tuple[str, str, str]]:
        for line in gzip.decompress(_asset("duplicates.txt.gz")).decode().split():
            domain, label, file = line.split("/")
            yield domain, label, file

    return frozenset(read())


def _asset(name: str) -> bytes:
    return resources.files("attar").joinpath("assets", "domainnet", name).read_bytes()
