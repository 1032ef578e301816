"""The files of a store: what they are called and what store.json says about them.

A store is a folder in clip-retrieval's layout, so that its tools and embedding-reader read it::

    img_emb/img_emb_N.npy             [rows, D] unit rows of images
    metadata/metadata_N.parquet       image_path, key, view, view_params; aligned row by row
    text_emb/text_emb_N.npy           [rows, D] unit rows of texts
    text_metadata/metadata_N.parquet  caption, key; aligned row by row
    store.json                        the teacher, the views, and the shards that are committed

store.json is the truth: a file that it does not list is the leftover of a crash.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from attar.errors import AttarError, UsageError
from attar.files import read_json, write_json
from attar.teachers.base import TeacherInfo

FORMAT = "attar-store"
FORMAT_VERSION = 1
CLEAN = "clean"
"""The view in which the teacher saw the whole image as it is in the file."""
IMPORTED = "imported:"
"""Start of the identity of a teacher that is known only by embeddings someone published."""

Kind = Literal["image", "text"]
EMBEDDINGS: Mapping[Kind, str] = {"image": "img_emb", "text": "text_emb"}
METADATA: Mapping[Kind, str] = {"image": "metadata", "text": "text_metadata"}


def embeddings_file(store: Path, kind: Kind, index: int) -> Path:
    """Return the path of a shard's embeddings."""
    return store / EMBEDDINGS[kind] / f"{EMBEDDINGS[kind]}_{index}.npy"


def metadata_file(store: Path, kind: Kind, index: int) -> Path:
    """Return the path of a shard's metadata."""
    return store / METADATA[kind] / f"metadata_{index}.parquet"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A committed pair of files, embeddings and metadata, with the same rows."""

    index: int
    rows: int
    embeddings_bytes: int
    embeddings_sha256: str
    metadata_bytes: int
    metadata_sha256: str
    views: Mapping[str, int] = field(default_factory=dict)
    """Rows of each view; empty for texts."""


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What store.json says."""

    teacher: TeacherInfo
    dtype: str = "float16"
    views: Mapping[str, Mapping[str, Any] | None] = field(default_factory=lambda: {CLEAN: None})
    """View name -> recipe, size, seed and index it was drawn from; None for the clean view."""
    image_shards: tuple[Shard, ...] = ()
    text_shards: tuple[Shard, ...] = ()

    def shards(self, kind: Kind) -> tuple[Shard, ...]:
        """Return the committed shards of images or of texts, in stored order."""
        return self.image_shards if kind == "image" else self.text_shards

    @property
    def counts(self) -> dict[str, Any]:
        """Committed rows: {"images": {view: rows}, "image_rows": rows, "text_rows": rows}."""
        return {
            "images": {
                view: sum(shard.views.get(view, 0) for shard in self.image_shards)
                for view in self.views
            },
            "image_rows": sum(shard.rows for shard in self.image_shards),
            "text_rows": sum(shard.rows for shard in self.text_shards),
        }

    def write(self, store: Path) -> None:
        """Replace store.json, atomically."""
        write_json(
            store / "store.json",
            {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "teacher": asdict(self.teacher),
                "dtype": self.dtype,
                "normalised": True,
                "views": dict(self.views),
                "counts": self.counts,
                "image_shards": [asdict(shard) for shard in self.image_shards],
                "text_shards": [asdict(shard) for shard in self.text_shards],
            },
        )

    @classmethod
    def read(cls, store: Path) -> Self:
        """Read store.json. UsageError when `store` is no store, AttarError when it is broken."""
        file = store / "store.json"
        if not file.is_file():
            what = "does not exist" if not store.exists() else "is not a store (no store.json)"
            raise UsageError(
                f"{store} {what}; make one with: attar embed --data DATA --teacher T --out {store}"
            )
        value = read_json(file)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UsageError(f"{file} does not describe a store of attar; choose another folder")
        if value.get("version") != FORMAT_VERSION:
            raise UsageError(
                f"{file} has format version {value.get('version')}, this attar reads "
                f"{FORMAT_VERSION}; use the version of attar that wrote it"
            )
        try:
            return cls(
                teacher=TeacherInfo(**value["teacher"]),
                dtype=value["dtype"],
                views=value["views"],
                image_shards=tuple(Shard(**shard) for shard in value["image_shards"]),
                text_shards=tuple(Shard(**shard) for shard in value["text_shards"]),
            )
        except (KeyError, TypeError) as error:
            raise AttarError(
                f"{file} is incomplete ({error}); restore it or embed into another folder"
            ) from error


def check_teacher(store: Path, stored: TeacherInfo, asked: TeacherInfo) -> None:
    """Refuse to mix two teachers' embeddings in one store (UsageError)."""
    if stored.identity == asked.identity and stored.dim == asked.dim:
        return
    same = " (same name, other weights or preprocessing)" if stored.name == asked.name else ""
    raise UsageError(
        f"{store} holds embeddings of teacher {stored.name!r} "
        f"(identity {short_identity(stored)}, {stored.dim} numbers), not of {asked.name!r} "
        f"(identity {short_identity(asked)}, {asked.dim} numbers){same}; "
        "choose another store folder, or the teacher that made this one"
    )


def check_dtype(store: Path, stored: str, asked: str) -> None:
    """Refuse to mix number formats in one store (UsageError)."""
    if stored != asked:
        raise UsageError(
            f"{store} holds {stored} embeddings, {asked} was asked; "
            f"use dtype {stored} or choose another store folder"
        )


def short_identity(teacher: TeacherInfo) -> str:
    """Return the first 12 hex characters of an identity, with the mark of an import kept."""
    if teacher.identity.startswith(IMPORTED):
        return IMPORTED + teacher.identity[len(IMPORTED) :][:12]
    return teacher.identity[:12]
