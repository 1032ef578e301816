"""Take over embeddings that someone published, so that the teacher never has to run.

The layout is clip-retrieval's: ``img_emb/*_N.npy`` beside ``metadata/metadata_N.parquet`` with a
column ``image_path``; texts in ``text_emb/*_N.npy`` with a column ``caption`` in the same metadata
(or in ``text_metadata/``, as attar writes it). The teacher itself may be unknown, so the class
features of a distillation come from the imported texts, or from a file of class features.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.files import check_writable, sha256_file
from attar.store.layout import CLEAN, IMPORTED, short_identity
from attar.store.paths import Matches, match_paths
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.teachers.base import TeacherInfo

CHUNK = 8192
"""Rows copied at a time."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """How the published embeddings met the user's images."""

    path: Path
    teacher: TeacherInfo
    matched: int
    """Images of the table that have a published embedding."""
    unmatched: tuple[str, ...]
    """Names of images without one."""
    ambiguous: tuple[str, ...]
    """Names of images for which several published paths, or one claimed by others, would do."""
    texts: int
    """Distinct texts taken over."""

    def __str__(self) -> str:
        parts = [f"{self.matched:,} images matched", f"{len(self.unmatched):,} without embedding"]
        if self.ambiguous:
            parts.append(f"{len(self.ambiguous):,} ambiguous (first: {self.ambiguous[0]!r})")
        return (
            ", ".join(parts) + f"; {self.texts:,} texts; teacher {self.teacher.name!r} "
            f"({short_identity(self.teacher)})"
        )


@dataclass(frozen=True)
class _Pair:
    """An embeddings file [rows, D] and its metadata, aligned row by row."""

    embeddings: Path
    metadata: Path

    def load(self) -> NDArray[Any]:
        return _load(self.embeddings)

    def column(self, name: str) -> list[Any]:
        """Return a column of the metadata; rows of other views than clean become None."""
        try:
            schema = pq.read_schema(self.metadata)
            wanted = [column for column in (name, "view") if column in schema.names]
            table = pq.read_table(self.metadata, columns=wanted)
        except (OSError, pa.ArrowException) as error:
            raise AttarError(f"{self.metadata} cannot be read ({error}); get it again") from error
        if name not in schema.names:
            raise UsageError(
                f"{self.metadata} has no column {name!r} (it has {', '.join(schema.names)}); "
                "embeddings are matched by it, so publish or rename that column"
            )
        rows = len(self.load())
        if table.num_rows != rows:
            raise UsageError(
                f"{self.metadata} has {table.num_rows:,} rows but {self.embeddings} has {rows:,}; "
                "the two must be aligned row by row, so get both files from the same source"
            )
        values: list[Any] = table[name].to_pylist()
        if "view" not in wanted:
            return values
        views = table["view"].to_pylist()
        return [v if view == CLEAN else None for v, view in zip(values, views, strict=True)]


@dataclass
class _Gathered:
    """Rows of published files, by where they are."""

    labels: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """(number of the pair, row in it)."""


def imported_teacher(folder: Path, name: str, logit_scale: float = 100.0) -> TeacherInfo:
    """Describe the unknown teacher of published embeddings: its identity is theirs.

    `logit_scale` is what its softmax multiplies cosines with; 100 for most CLIP models.
    """
    pairs, text_pairs = _image_pairs(folder), _text_pairs(folder)
    digest = hashlib.sha256()
    for pair in (*pairs, *text_pairs):
        digest.update(sha256_file(pair.embeddings).encode())
    dim = _load(pairs[0].embeddings).shape[1]
    return TeacherInfo(
        name=name, identity=IMPORTED + digest.hexdigest(), dim=dim, logit_scale=logit_scale
    )


def import_store(folder: Path, table: ImageTable, out: Path, teacher: TeacherInfo) -> ImportReport:
    """Copy the published embeddings of the table's images, and all texts, into the store `out`.

    Images are matched by path relative to their data root: exactly, else where one path ends with
    the whole of the other and no second candidate exists. Rows are brought to unit length. What
    the store holds already is left alone. UsageError: no pair of files, misaligned files, another
    dimension than the teacher's, or no image matched.
    """
    pairs, text_pairs = _image_pairs(folder), _text_pairs(folder)
    for pair in (*pairs, *text_pairs):
        if (dim := pair.load().shape[1]) != teacher.dim:
            raise UsageError(
                f"{pair.embeddings} has {dim} numbers a row, the teacher {teacher.name!r} has "
                f"{teacher.dim}; name the teacher that made these embeddings"
            )
    published = _gather(pairs, "image_path")
    matches = match_paths(table.names, published.labels)
    if not matches.found:
        raise UsageError(
            f"none of the {len(table):,} images has an embedding in {folder}: yours are like "
            f"{table.names[0]!r}, the published paths like {published.labels[0]!r}; give the "
            "--data folder that those paths are relative to"
            if len(table) and published.labels
            else f"there is nothing to match: {len(table)} images, {len(published.labels)} paths"
        )
    check_writable(out, (len(matches.found) + len(published.labels)) * teacher.dim * 2)
    with StoreWriter.open(out, teacher) as writer:
        _copy_images(writer, table, pairs, published, matches)
        texts = _copy_texts(writer, text_pairs)
    return ImportReport(
        path=out,
        teacher=teacher,
        matched=len(matches.found),
        unmatched=tuple(table.names[row] for row in matches.unmatched),
        ambiguous=tuple(table.names[row] for row in matches.ambiguous),
        texts=texts,
    )


def _copy_images(
    writer: StoreWriter,
    table: ImageTable,
    pairs: Sequence[_Pair],
    published: _Gathered,
    matches: Matches,
) -> None:
    rows = list(matches.found)
    held = Store.open(writer.path).has_images([table.keys[row] for row in rows])
    first: dict[str, int] = {}
    for row, is_held in zip(rows, held, strict=True):
        if not is_held:
            first.setdefault(table.keys[row], row)
    new = list(first.values())
    places = [published.places[matches.found[row]] for row in new]
    for part, features in _read_rows(pairs, places):
        chosen = [new[at] for at in part]
        writer.add_images(
            [table.keys[row] for row in chosen],
            [table.names[row] for row in chosen],
            CLEAN,
            features,
        )


def _copy_texts(writer: StoreWriter, pairs: Sequence[_Pair]) -> int:
    """Copy every distinct text; return how many there are."""
    published = _gather(pairs, "caption") if pairs else _Gathered()
    first = dict(zip(reversed(published.labels), reversed(published.places), strict=True))
    texts = list(first)
    held = Store.open(writer.path).has_texts(texts)
    new = [text for text, is_held in zip(texts, held, strict=True) if not is_held]
    for part, features in _read_rows(pairs, [first[text] for text in new]):
        writer.add_texts([new[at] for at in part], features)
    return len(texts)


def _gather(pairs: Sequence[_Pair], column: str) -> _Gathered:
    gathered = _Gathered()
    for number, pair in enumerate(pairs):
        for row, value in enumerate(pair.column(column)):
            if value is not None:
                gathered.labels.append(str(value))
                gathered.places.append((number, row))
    return gathered


def _read_rows(
    pairs: Sequence[_Pair], places: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """Yield (positions in `places`, their rows [n, D]), file by file and in file order."""
    by_pair: dict[int, list[int]] = {}
    for at in sorted(range(len(places)), key=lambda at: places[at]):
        by_pair.setdefault(places[at][0], []).append(at)
    for number, positions in by_pair.items():
        array = pairs[number].load()
        for start in range(0, len(positions), CHUNK):
            part = positions[start : start + CHUNK]
            yield part, array[[places[at][1] for at in part]]


def _image_pairs(folder: Path) -> list[_Pair]:
    pairs = _pairs(folder / "img_emb", folder / "metadata")
    if not pairs:
        raise UsageError(
            f"{folder} holds no img_emb/*.npy beside metadata/*.parquet; give a folder that "
            "clip-retrieval inference (with metadata) or attar embed wrote"
        )
    return pairs


def _text_pairs(folder: Path) -> list[_Pair]:
    own = folder / "text_metadata"
    return _pairs(folder / "text_emb", own if own.is_dir() else folder / "metadata")


def _pairs(embeddings: Path, metadata: Path) -> list[_Pair]:
    """Pair files by their number N, whatever its padding, in the order of N."""
    arrays = {_number(file): file for file in embeddings.glob("*.npy")}
    tables = {_number(file): file for file in metadata.glob("*.parquet")}
    for number, file in sorted(arrays.items()):
        if number not in tables:
            raise UsageError(
                f"{file} has no metadata_{number}.parquet in {metadata}; without it nobody knows "
                "which row belongs to what, so get that file too"
            )
    return [_Pair(arrays[number], tables[number]) for number in sorted(arrays)]


def _number(file: Path) -> int:
    digits = re.search(r"(\d+)$", file.stem)
    if digits is None:
        raise UsageError(
            f"{file} does not end in a number; name it like {file.stem}_0{file.suffix}"
        )
    return int(digits.group())


def _load(file: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise AttarError(f"{file} cannot be read ({error}); get it again") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UsageError(
            f"{file} holds {array.dtype} {array.shape}; embeddings are a table [rows, D] of floats"
        )
    return array
