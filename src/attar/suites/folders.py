"""Data sets in class folders: what is there, and what of the published set is not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attar.data.images import is_image_name
from attar.data.table import ImageTable
from attar.suites.labelled import Listed, tabulate

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Published:
    """A data set as its authors publish it."""

    name: str
    places: tuple[str, ...]
    """Folders below --suite-data where it may lie, the one that its archive unpacks to first."""
    num_images: int
    """In the classes that are measured."""
    source: str
    """How to get it."""


def find_place(root: Path, published: Published, class_folders: Sequence[str]) -> Path | None:
    """Return the first of the set's places that holds any of its class folders."""
    for place in published.places:
        folder = root / place
        if any((folder / name).is_dir() for name in class_folders):
            return folder
    return None


def read_class_folders(
    place: Path,
    folders: Mapping[str, int],
    class_names: Sequence[str],
    published: Published,
    cache: Path,
) -> tuple[ImageTable, str]:
    """Read the images of class folders, one level deep; other folders and files are passed over.

    Args:
        place: the folder that holds the class folders.
        folders: class folder -> label.
        class_names: the C classes.
        published: how many images there should be.
        cache: see `tabulate`.

    Returns:
        The images that can be read, and what is lacking, in words, empty for a whole set.
    """
    listed = [
        Listed(path=str(path.resolve()), name=f"{folder}/{path.name}", labels=(label,))
        for folder, label in folders.items()
        if (place / folder).is_dir()
        for path in sorted((place / folder).iterdir())
        if is_image_name(path.name)
    ]
    table, broken = tabulate(listed, class_names, cache)
    held = {image.name.partition("/")[0] for image in listed}
    empty = [folder for folder in folders if folder not in held]
    lacks = []
    if empty:
        some = ", ".join(empty[:_SHOWN])
        lacks.append(f"{len(empty):,} of {len(folders):,} class folders hold no image ({some})")
    if len(listed) != published.num_images:
        lacks.append(f"{place} holds {len(listed):,} images instead of {published.num_images:,}")
    lacks += [broken] if broken else []
    return table, "; ".join(lacks)
