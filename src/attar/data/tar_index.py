"""What is in a tar of samples: found in one pass from its beginning to its end, and kept.

A sample is the files `KEY.EXT` that stand beside each other: an image, and optionally `KEY.cls`
(a class: its name or number), `KEY.txt` (a caption) and `KEY.json` (any of label, labels, domain,
split and caption). The same pass hashes and decodes every image. The index of a whole tar is kept
in a file of its own, so a listing that was killed goes on with the next tar.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from attar.data.images import decode_image, is_image_name
from attar.data.split_names import SPLIT_NAMES
from attar.data.tar_walk import TarPart, TarWalk
from attar.errors import AttarError
from attar.files import atomic_path, sha256_text
from attar.members import fingerprint, open_tar

_AT_ONCE = 64
"""Samples in memory while they are decoded."""
_TOLD_BY = ("cls", "txt", "json")
"""Extensions of the files that say something of the image beside them."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image in a tar and what stands beside it."""

    name: str
    """Path of the image inside the tar."""
    start: int
    end: int
    """The image is bytes `start` up to `end` of the tar."""
    sha256: str
    """Of the image's bytes in hex; empty when the sample cannot be used."""
    reason: str | None = None
    """Why the sample cannot be used, None for a good one."""
    label: str | None = None
    labels: tuple[str, ...] | None = None
    domain: str | None = None
    split: str | None = None
    caption: str | None = None


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """The samples of one tar, in stored order."""

    tar: str
    samples: tuple[Sample, ...]
    trouble: str | None = None
    """Why the tar could not be read to its end; `samples` are then those before that place."""

    @classmethod
    def make(cls, tar: str, pool: ThreadPoolExecutor, folder: Path | None = None) -> Self:
        """Read a tar, or the index that an earlier call kept in `folder` if the tar is unchanged.

        A broken tar is no error: `trouble` says what it is.

        Raises:
            AttarError: the tar cannot be reached, which trying again may change.
        """
        file = None if folder is None else folder / f"{sha256_text(tar)[:16]}.parquet"
        try:
            stamp = fingerprint(tar)
            known = None if file is None else cls._load(file, tar, stamp)
            if known is not None:
                return known
            with open_tar(tar) as opened:
                walk = TarWalk(opened)
                groups = _whole_samples(walk)
                samples: list[Sample] = []
                while some := list(islice(groups, _AT_ONCE)):
                    samples += pool.map(_examined, some)
        except OSError as error:
            raise AttarError(
                f"{tar} cannot be read ({error.strerror or error}): correct that or leave it out, "
                "and run the same command again; tars that were read before it are not read again"
            ) from error
        index = cls(tar=tar, samples=tuple(samples), trouble=walk.trouble)
        if file is not None and index.trouble is None:
            index._save(file, stamp)
        return index

    def _save(self, file: Path, stamp: str) -> None:
        rows = [asdict(sample) for sample in self.samples]
        table = pa.Table.from_pylist(
            rows, schema=_SCHEMA.with_metadata({"of": _of(self.tar, stamp)})
        )
        with atomic_path(file) as temporary:
            pq.write_table(table, temporary)

    @classmethod
    def _load(cls, file: Path, tar: str, stamp: str) -> Self | None:
        try:
            table = pq.read_table(file, schema=None)
            if table.schema.metadata[b"of"].decode() != _of(tar, stamp):
                return None
            rows = table.select(_SCHEMA.names).to_pylist()
        except (OSError, ValueError, KeyError, TypeError):
            return None  # an index can always be made again
        several = [{**row, "labels": row["labels"] and tuple(row["labels"])} for row in rows]
        return cls(tar=tar, samples=tuple(Sample(**row) for row in several))


def _of(tar: str, stamp: str) -> str:
    """Return what an index belongs to: this tar, unchanged, as this version reads it."""
    return f"2 {tar} {stamp}"


_NUMBERS = ("start", "end")
_SCHEMA = pa.schema(
    [
        (field.name, pa.int64() if field.name in _NUMBERS else pa.string())
        if field.name != "labels"
        else ("labels", pa.list_(pa.string()))
        for field in fields(Sample)
    ]
)


_Group = dict[str, TarPart]
"""The files of one sample by extension; the image is at ""."""


def _whole_samples(walk: TarWalk) -> Iterator[_Group]:
    """Yield the samples that have an image; never the one in which a tar breaks off.

    A label that stands apart from its image would be lost: the walk's `trouble` names it.
    """
    apart = _Apart()
    for key, group in _groups(walk):
        if group:
            apart.look_at(key, group)
        if "" in group:
            yield group
    walk.trouble = walk.trouble or apart.trouble


def _groups(walk: TarWalk) -> Iterator[tuple[str, _Group]]:
    """Yield the files that stand beside each other under one key."""
    group: _Group = {}
    before = None
    for part in walk.parts(_tells):
        if before is not None and part.key != before:
            yield before, group
            group = {}
        before = part.key
        if _tells(part.extension):
            group.setdefault(part.extension if part.extension in _TOLD_BY else "", part)
    if walk.trouble is None and before is not None:
        yield before, group


def _tells(extension: str) -> bool:
    """Whether a file of a sample is its image or says something of it."""
    return extension in _TOLD_BY or is_image_name(f"x.{extension}")


class _Apart:
    """The samples whose image is in one place of a tar and what is told of it in another."""

    def __init__(self) -> None:
        self._has_image: dict[str, bool] = {}
        self._names: list[str] = []

    def look_at(self, key: str, group: _Group) -> None:
        """Compare the files of a key with those that stood elsewhere."""
        has_image, is_told = "" in group, any(extension in group for extension in _TOLD_BY)
        before = self._has_image.get(key)
        lost = before if not has_image else before is False and not is_told
        if lost:
            self._names.append(next(iter(group.values())).name)
        self._has_image[key] = bool(before) or has_image

    @property
    def trouble(self) -> str | None:
        """What is wrong, None for a tar in which nothing is apart."""
        if not self._names:
            return None
        more = f" (and {len(self._names) - 1:,} more)" if len(self._names) > 1 else ""
        return (
            f"{self._names[0]}{more} stands apart from the other files of its sample and was not "
            "read with it: write the tar again, its names sorted"
        )


def _examined(group: _Group) -> Sample:
    """Hash and decode the image of a sample and read what stands beside it."""
    image = group[""]
    place: dict[str, Any] = {
        "name": image.name,
        "start": image.start,
        "end": image.end,
    }
    try:
        image.name.encode()
        told = _told(group)
        decode_image(image.data)
    except UnicodeError:
        place["name"] = image.name.encode(errors="replace").decode()
        return Sample(**place, sha256="", reason="its name is not UTF-8")
    except AttarError as error:
        return Sample(**place, sha256="", reason=str(error))
    return Sample(**place, sha256=hashlib.sha256(image.data).hexdigest(), **told)


def _told(group: Mapping[str, TarPart]) -> dict[str, Any]:
    """Return the fields of a `Sample` that its files give; AttarError for one that is broken."""
    told: dict[str, Any] = {}
    for extension, read in _READERS.items():
        if extension in group:
            part = group[extension]
            try:
                found = read(part.data.decode())
            except ValueError as error:  # of decoding bytes as well as JSON
                raise AttarError(f"{part.name} beside it cannot be read: {error}") from error
            told = {**found, **told}
    if "labels" in told:
        told.pop("label", None)
    return told


def _text(name: str) -> Callable[[str], dict[str, Any]]:
    def read(text: str) -> dict[str, Any]:
        text.encode()  # JSON may hold half a character, which no file could take
        return {name: text.strip()} if text.strip() else {}

    return read


def _json(text: str) -> dict[str, Any]:
    """Return label, labels, domain, split and caption of a JSON object; other keys are ignored."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    found: dict[str, Any] = {}
    for name in ("label", "domain", "split", "caption"):
        if value.get(name) is not None:
            found |= _text(name)(str(value[name]))
    if found.get("split", "train") not in SPLIT_NAMES:
        raise ValueError(f"split {found['split']!r} is none of {', '.join(SPLIT_NAMES)}")
    if isinstance(value.get("labels"), list):
        labels = [str(label).strip() for label in value["labels"]]
        "".join(labels).encode()
        found["labels"] = tuple(dict.fromkeys(labels))
    return found


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "cls": _text("label"),
    "txt": _text("caption"),
    "json": _json,
}
"""Readers by extension; what an earlier one says stands."""
