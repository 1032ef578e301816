"""Manifests: a CSV or Parquet table that names images and what is known of them."""

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from attar.data.split_names import SPLIT_NAMES
from attar.errors import UsageError, unknown_name
from attar.members import is_url

MANIFEST_EXTENSIONS = (".csv", ".parquet")

_COLUMNS = ("path", "label", "labels", "domain", "split", "caption")
_SEPARATOR = "|"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image as its source names it."""

    path: str
    """Absolute."""
    name: str
    """Relative to the source's root, with forward slashes; absolute for a file outside it."""
    label: str | None = None
    labels: tuple[str, ...] | None = None
    """All classes that are in the image, or None where its source does not say several."""
    domain: str | None = None
    split: str | None = None
    caption: str | None = None


def read_manifest(path: Path) -> list[Entry]:
    """Read a manifest with a `path` column and optional label, labels, domain, split and caption.

    Paths are absolute or relative to the manifest's folder. Empty cells mean "none"; other columns
    are ignored. With a `labels` column every row has several labels, separated by "|": all that is
    in the image, and nothing where the cell is empty. Whether the files exist is not looked at
    here.

    Raises:
        UsageError: the manifest cannot be read, has no `path` column, no rows, a row without a
            path, a split name that is not known, an empty label between two separators, or both
            `label` and `labels`.
    """
    rows = _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path)
    if not rows:
        raise UsageError(f"manifest {path} has no rows: give one row an image")
    if "path" not in rows[0]:
        raise UsageError(
            f"manifest {path} has no column 'path' (it has: {', '.join(rows[0])}); its columns are "
            f"{', '.join(_COLUMNS)}, all but path optional"
        )
    folder = path.parent.resolve()
    if "labels" in rows[0] and "label" in rows[0]:
        raise UsageError(
            f"manifest {path} has both a 'label' and a 'labels' column: keep 'label' for one class "
            "an image, 'labels' (a|b|c) for several"
        )
    several = "labels" in rows[0]
    return [
        _entry(folder, f"{path} row {number}", row, several)
        for number, row in enumerate(rows, start=1)
    ]


def _entry(folder: Path, where: str, cells: dict[str, Any], several: bool) -> Entry:
    row = {column: _text(cells.get(column)) for column in _COLUMNS if column != "labels"}
    if row["path"] is None:
        raise UsageError(f"manifest {where} has no path")
    split = row["split"]
    if split is not None and split not in SPLIT_NAMES:
        raise unknown_name(f"split in {where}:", split, SPLIT_NAMES)
    absolute, name = _absolute(row["path"], folder)
    return Entry(
        path=absolute,
        name=name,
        label=row["label"],
        labels=_several(cells["labels"], where) if several else None,
        domain=row["domain"],
        split=split,
        caption=row["caption"],
    )


def _absolute(path: str, folder: Path) -> tuple[str, str]:
    """Return a cell's path as an absolute one, and as it is shown to people."""
    if is_url(path):
        return path, path
    absolute = os.path.normpath(folder / path)
    relative = Path(os.path.relpath(absolute, folder))
    return absolute, relative.as_posix() if relative.parts[:1] != ("..",) else absolute


def _several(cell: object, where: str) -> tuple[str, ...]:
    """Return the labels of a cell "a|b|c", or of a Parquet list, each once."""
    if isinstance(cell, list):
        names = [_text(item) for item in cell]
    else:
        text = _text(cell)
        names = [] if text is None else [part.strip() or None for part in text.split(_SEPARATOR)]
    if None in names:
        raise UsageError(f"manifest {where} has an empty label in {cell!r}: write labels as a|b|c")
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _read_csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"manifest {path} cannot be read as CSV in UTF-8: {error}") from error
    return [{(name or "").strip().lower(): value for name, value in row.items()} for row in rows]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"manifest {path} cannot be read as Parquet: {error}") from error
    names = [name for name in table.column_names if name.strip().lower() in _COLUMNS]
    rows: list[dict[str, Any]] = table.select(names or table.column_names).to_pylist()
    return [{name.strip().lower(): value for name, value in row.items()} for row in rows]


def _text(value: object) -> str | None:
    """Return a cell as text, None when empty; a class column 0, 1, NaN of floats reads 0, 1, none.

    (pandas turns a column of integers with gaps into floats.)
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None
