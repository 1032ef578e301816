"""From `--data` to the table of images that every later stage reads."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar.data.classes import ClassList
from attar.data.share import filter_parity
from attar.data.sources import read_sources
from attar.data.splits import Splits
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.files import atomic_path, check_writable
from attar.run import DataConfig, RunFolder

_FILES = "files.parquet"


def read_image_table(
    config: DataConfig,
    classes: ClassList | None,
    folder: Path,
    *,
    superset: bool = False,
    held_out_domain: str | None = None,
    store: Path | None = None,
) -> ImageTable:
    """Read the images: layout detected, every file hashed and decoded once.

    Files that cannot be read are listed in `folder`/set_aside.json; what was found about every file
    is kept in `folder`/files.parquet, so that a second call reads only what changed; a new folder
    begins with what a `store` of these images has kept. `superset` lets the class list name classes
    that the images lack. A `held_out_domain` that the images lack is refused before they are read.
    """
    check_writable(folder)
    cache = folder / _FILES
    if store is not None and (store / _FILES).is_file() and not cache.exists():
        with atomic_path(cache) as temporary:
            shutil.copyfile(store / _FILES, temporary)
    table = read_sources(
        config.data,
        class_list=classes,
        set_aside=folder / "set_aside.json",
        strict=config.strict,
        cache=cache,
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


def keep_with_splits(images: ImageTable, splits: Splits, run: RunFolder) -> None:
    """Write the image table with the split that each image went to, None for those left out.

    Raises:
        UsageError: the run has begun to train, and on others.
    """
    names = {name: split for split, table in splits.tables().items() for name in table.paths}
    table = replace(images, splits=tuple(names.get(path) for path in images.paths))
    if run.checkpoints.is_dir() and run.images.is_file():
        then, now = _rows(ImageTable.load(run.images)), _rows(table)
        if then != now:
            raise UsageError(
                f"the images have changed since {run.path} began to train: {len(now - then):,} are "
                f"new or have another label, domain, split or caption, {len(then - now):,} are as "
                "they were no longer; put them back, choose another --out, or delete that folder"
            )
    table.save(run.images)


def _rows(table: ImageTable) -> Counter[tuple[Any, ...]]:
    """Return what training may see of each image, wherever its file lies."""
    classes, domains = (*table.class_names, None), (*table.domain_names, None)
    sets = table.label_sets or ((),) * len(table)
    return Counter(
        (key, classes[label], domains[domain], split, caption, tuple(classes[i] for i in of))
        for key, label, domain, split, caption, of in zip(
            table.keys, table.labels, table.domains, table.splits, table.captions, sets, strict=True
        )
    )
