"""ImageTable: the images of a run as equal-length columns; every other part reads only this."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

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
    """The split that a manifest names, else None."""
    class_names: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()
    layout: str = ""
    """What was found, in words: "domain/class/image: 4 domains, 7 classes, 9,991 images"."""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of an ImageTable differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def has_labels(self) -> bool:
        """Whether at least one image has a label."""
        return any(label >= 0 for label in self.labels)

    @property
    def has_domains(self) -> bool:
        """Whether at least one image has a domain."""
        return any(domain >= 0 for domain in self.domains)

    def select(self, indices: Sequence[int]) -> Self:
        """Return the rows at `indices`, in that order; class and domain names stay."""
        columns: dict[str, Any] = {
            name: tuple(column[i] for i in indices)
            for name, column in ((name, getattr(self, name)) for name in COLUMNS)
        }
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
        ).replace_schema_metadata({"attar": json.dumps(names)})
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a table that `save` wrote; anything else is an AttarError that names the file."""
        try:
            table = pq.read_table(path)
            names = json.loads(table.schema.metadata[b"attar"])
            columns = {name: tuple(table[name].to_pylist()) for name in COLUMNS}
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
    return ImageTable(
        **plain,
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
