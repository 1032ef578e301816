"""From `--data` to the table of images that every later stage reads."""

from dataclasses import replace
from pathlib import Path

from attar.data.classes import ClassList
from attar.data.share import filter_parity
from attar.data.sources import read_sources
from attar.data.splits import Splits
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.files import check_writable
from attar.run import DataConfig


def read_image_table(
    config: DataConfig,
    classes: ClassList | None,
    folder: Path,
    *,
    superset: bool = False,
    held_out_domain: str | None = None,
) -> ImageTable:
    """Read the images: layout detected, every file hashed and decoded once.

    Files that cannot be read are listed in `folder`/set_aside.json; what was found about every file
    is kept in `folder`/files.parquet, so that a second call reads only what changed. `superset`
    lets the class list name classes that the images lack. A `held_out_domain` that the images lack
    is refused before they are read.
    """
    check_writable(folder)
    table = read_sources(
        config.data,
        class_list=classes,
        set_aside=folder / "set_aside.json",
        strict=config.strict,
        cache=folder / "files.parquet",
        unlabelled=config.unlabelled,
        superset=superset,
        held_out_domain=held_out_domain,
    )
    if config.subset == "all":
        return table
    part = filter_parity(table, config.subset)
    if not len(part):
        raise UsageError(f"--subset {config.subset} leaves none of {len(table)} images")
    return part


def save_with_splits(images: ImageTable, splits: Splits, path: Path) -> None:
    """Write the image table with the split that each image went to, None for those left out."""
    names = {name: split for split, table in splits.tables().items() for name in table.paths}
    replace(images, splits=tuple(names.get(path) for path in images.paths)).save(path)
