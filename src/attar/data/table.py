"""ImageTable: the images of a run as equal-length columns; every other part reads only this."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attar.errors import AttarError
from attar.files import atomic_path

COLUMNS = ("paths", "names", "keys", "labels", "domains", "captions", "splits")


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """Images and what is known of them, one row an image; all columns have the same length."""

    paths: tuple[str, ...]
    """Absolute path of each file."""
    names: tuple[str, ...]
    """Path relative to its data root, with forward slashes: what is shown to people."""
    keys: tuple[str, ...]
    """sha256 of each file's bytes in hex; equal keys mean identical files."""
    labels: tuple[int, ...]
    """Index into `class_names`, -1 for none."""
    domains: tuple[int, ...]
    """Index into `domain_names`, -1 for none."""
    captions: tuple[str | None, ...]
    splits: tuple[str | None, ...]
    """The split that a manifest or a folder names, else None."""
    class_names: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()
    label_sets: tuple[tuple[int, ...], ...] = ()
    """All classes in each image, as ascending indices into `class_names`; empty, without a row,
    when the images have one label each. With label sets, `labels` may be -1 everywhere."""
    layout: str = ""
    """What was found, in words: "domain/class/image: 4 domains, 7 classes, 9,991 images"."""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if self.label_sets:
            lengths["label_sets"] = len(self.label_sets)
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of an ImageTable differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_labels(self) -> bool:
        """Whether at least one image has a label."""
        return any(label >= 0 for label in self.labels)

    @property
    def has_label_sets(self) -> bool:
        """Whether the images have several labels each."""
        return bool(self.label_sets)

    @property
    def has_domains(self) -> bool:
        """Whether at least one image has a domain."""
        return any(domain >= 0 for domain in self.domains)

    def multi_hot(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Return which classes are in the images at `indices`, [B, C] of 0 and 1.

        Without label sets, the one label of each image is what is in it.
        """
        rows = np.zeros((len(indices), len(self.class_names)), dtype=np.float32)
        for row, index in enumerate(indices):
            rows[row, list(_label_set(self, index))] = 1
        return rows

    def select(self, indices: Sequence[int]) -> Self:
        """Return the rows at `indices`, in that order; class and domain names stay."""
        columns: dict[str, Any] = {
            name: tuple(column[i] for i in indices)
            for name, column in ((name, getattr(self, name)) for name in COLUMNS)
        }
        if self.label_sets:
            columns["label_sets"] = tuple(self.label_sets[i] for i in indices)
        return replace(self, **columns)

    def save(self, path: Path) -> None:
        """Write the table as Parquet, atomically."""
        names = {
            "class_names": self.class_names,
            "domain_names": self.domain_names,
            "layout": self.layout,
        }
        table = pa.table(
            {name: pa.array(getattr(self, name), _arrow_type(name)) for name in COLUMNS}
        )
        if self.label_sets:
            column = pa.array(self.label_sets, pa.list_(pa.int32()))
            table = table.append_column("label_sets", column)
        table = table.replace_schema_metadata({"attar": json.dumps(names)})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a table that `save` wrote; anything else is an AttarError that names the file."""
        try:
            table = pq.read_table(path)
            names = json.loads(table.schema.metadata[b"attar"])
            columns = {name: tuple(table[name].to_pylist()) for name in COLUMNS}
            if "label_sets" in table.column_names:
                columns["label_sets"] = tuple(map(tuple, table["label_sets"].to_pylist()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AttarError(f"{path} is not a table of images ({error}); delete it") from error
        return cls(
            **columns,
            class_names=tuple(names["class_names"]),
            domain_names=tuple(names["domain_names"]),
            layout=names["layout"],
        )


def _arrow_type(column: str) -> Any:
    return pa.int32() if column in ("labels", "domains") else pa.string()


def _label_set(table: ImageTable, row: int) -> tuple[int, ...]:
    """Return the classes in one image of a table with or without label sets."""
    if table.label_sets:
        return table.label_sets[row]
    return (table.labels[row],) if table.labels[row] >= 0 else ()


def label_sets_among(table: ImageTable, class_names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return the label sets as indices into other class names; classes not among them are left out.

    A table without label sets gives none.
    """
    place = {name: index for index, name in enumerate(class_names)}
    found = [place.get(name) for name in table.class_names]
    return tuple(
        tuple(sorted(index for index in (found[i] for i in labels) if index is not None))
        for labels in table.label_sets
    )


def concatenate(tables: Sequence[ImageTable]) -> ImageTable:
    """Return the rows of all tables one after the other; classes and domains are unioned.

    The union keeps the order of first appearance, so the names of the first table keep their
    indices. Layouts are joined with "; ". An empty sequence gives an empty table.
    """
    class_names = tuple(dict.fromkeys(name for t in tables for name in t.class_names))
    domain_names = tuple(dict.fromkeys(name for t in tables for name in t.domain_names))
    class_of = {name: index for index, name in enumerate(class_names)}
    domain_of = {name: index for index, name in enumerate(domain_names)}
    plain: dict[str, Any] = {
        column: tuple(value for t in tables for value in getattr(t, column))
        for column in ("paths", "names", "keys", "captions", "splits")
    }
    label_sets: tuple[tuple[int, ...], ...] = ()
    if any(t.label_sets for t in tables):
        label_sets = tuple(
            tuple(sorted(class_of[t.class_names[i]] for i in _label_set(t, row)))
            for t in tables
            for row in range(len(t))
        )
    return ImageTable(
        **plain,
        label_sets=label_sets,
        labels=tuple(
            class_of[t.class_names[i]] if i >= 0 else -1 for t in tables for i in t.labels
        ),
        domains=tuple(
            domain_of[t.domain_names[i]] if i >= 0 else -1 for t in tables for i in t.domains
        ),
        class_names=class_names,
        domain_names=domain_names,
        layout="; ".join(dict.fromkeys(t.layout for t in tables if t.layout)),
    )
