"""The classes of ImageNet-1k and of the sets that share them, as timm and OpenCLIP ship them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from attar.errors import AttarError

OBJECTNET_MAPPINGS = ("folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json")
"""In ObjectNet's `mappings`: class folder -> its label, and label -> the ImageNet classes it is."""


@dataclass(frozen=True, kw_only=True)
class SetClasses:
    """The C classes that the images of one set are ranked among."""

    folders: Mapping[str, int]
    """Class folder -> class."""
    names: tuple[str, ...]
    """[C] as they go into prompts."""
    imagenet: tuple[tuple[int, ...], ...]
    """[C] the classes of ImageNet-1k that each one is."""


@cache
def wnids() -> tuple[str, ...]:
    """Return the 1000 WordNet ids of ImageNet-1k, sorted as its class numbers are."""
    return _synsets("imagenet_synsets.txt")


@cache
def names() -> tuple[str, ...]:
    """Return the 1000 names that OpenAI wrote for CLIP, in the same order."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


def _synsets(file: str) -> tuple[str, ...]:
    text = resources.files("timm.data").joinpath("_info", file).read_text(encoding="utf-8")
    return tuple(text.split())


def all_classes() -> SetClasses:
    """Return the 1000 classes of ImageNet-1k and Sketch, in folders called by WordNet id."""
    return _of_wnids(wnids())


def adversarial_classes() -> SetClasses:
    """Return the 200 classes of ImageNet-A."""
    return _of_wnids(_synsets("imagenet_a_synsets.txt"))


def rendition_classes() -> SetClasses:
    """Return the 200 classes of ImageNet-R."""
    return _of_wnids(_synsets("imagenet_r_synsets.txt"))


def numbered_classes() -> SetClasses:
    """Return the 1000 classes of ImageNet-V2, whose folders are called 0, 1, ... 999."""
    folders = {str(number): number for number in range(len(wnids()))}
    return SetClasses(folders=folders, names=names(), imagenet=tuple((n,) for n in range(1000)))


def _of_wnids(chosen: tuple[str, ...]) -> SetClasses:
    number = {wnid: index for index, wnid in enumerate(wnids())}
    numbers = [number[wnid] for wnid in chosen]
    return SetClasses(
        folders={wnid: index for index, wnid in enumerate(chosen)},
        names=tuple(names()[n] for n in numbers),
        imagenet=tuple((n,) for n in numbers),
    )


def objectnet_classes(mappings: Path) -> SetClasses:
    """Return ObjectNet's classes that ImageNet has too (113), by ObjectNet's own names.

    The data set's files name the ImageNet classes of each by WordNet's synonyms, "; " between two.

    Raises:
        AttarError: a file is missing or broken, or names a class that ImageNet-1k does not have.
    """
    folder_labels, imagenet_names = (_read_mapping(mappings / file) for file in OBJECTNET_MAPPINGS)
    number = _numbers_by_synonyms()
    folder_of = {label: folder for folder, label in folder_labels.items()}
    shared: dict[str, tuple[int, ...]] = {}
    for label, text in imagenet_names.items():
        unknown = [name for name in text.split("; ") if name not in number]
        if unknown or label not in folder_of:
            raise AttarError(
                f"{mappings}: {label!r} is {text!r}, which is no folder or no class of "
                "ImageNet-1k; unpack the mappings of objectnet-1.0.zip again"
            )
        shared[folder_of[label]] = tuple(number[name] for name in text.split("; "))
    folders = sorted(shared)
    return SetClasses(
        folders={folder: index for index, folder in enumerate(folders)},
        names=tuple(folder_labels[folder].lower() for folder in folders),
        imagenet=tuple(shared[folder] for folder in folders),
    )


def _numbers_by_synonyms() -> dict[str, int]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {info.label_name_to_description(w): number for number, w in enumerate(wnids())}


def _read_mapping(path: Path) -> dict[str, str]:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AttarError(
            f"{path} cannot be read ({error}); unpack the mappings of objectnet-1.0.zip"
        ) from error
    return {str(key): str(text) for key, text in dict(value).items()}
