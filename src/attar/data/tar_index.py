"""What is in a tar of samples: found in one pass from its beginning to its end, and kept.

A sample is the files `KEY.EXT` that stand beside each other: an image, and optionally `KEY.cls`
(a class: its name or number), `KEY.txt` (a caption) and `KEY.json` (any of label, labels, domain,
split and caption). The same pass hashes and decodes every image. The index of a whole tar is kept
in a file of its own, so a listing that was killed goes on with the next tar.
"""

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from attar.data.images import decode_image, is_image_name
from attar.data.splits import SPLIT_NAMES
from attar.errors import AttarError
from attar.files import atomic_path, sha256_text
from attar.members import fingerprint, open_tar

_BLOCK = tarfile.BLOCKSIZE
_AT_ONCE = 64
"""Samples in memory while they are decoded."""
_PADDING = 1 << 16
"""More zeros than programs write behind the last file of a tar: Python, GNU and BSD tar 10 kB."""
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
                walk = _Walk(opened)
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


@dataclass
class _Part:
    """One file of a sample."""

    name: str
    start: int
    data: bytes


_Group = dict[str, _Part]
"""The files of one sample by extension; the image is at ""."""


class _Walk:
    """One pass over a tar's files; afterwards `trouble` says why it ended early, if it did."""

    def __init__(self, file: BinaryIO) -> None:
        self.trouble: str | None = None
        self._file = file
        self._end = 0

    def parts(self) -> Iterator[tuple[str, str, _Part | None]]:
        """Yield (key, extension, file) of every file, None for one that tells nothing.

        The last one may be cut: `trouble` is set then.
        """
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    # A member that is no file (a folder, a link) has no bytes of its own.
                    size = member.size if member.isreg() else 0
                    self._end = member.offset_data + -(-size // _BLOCK) * _BLOCK
                    key, extension = _split(member.name)
                    if not member.isreg() or _is_hidden(member.name):
                        continue
                    if extension not in _TOLD_BY and not is_image_name(f"x.{extension}"):
                        yield key, extension, None
                        continue
                    self._file.seek(member.offset_data)
                    data = self._file.read(size)
                    if len(data) != size:
                        self.trouble = f"it ends early, inside {member.name}"
                    name = member.name.removeprefix("./")
                    yield key, extension, _Part(name, member.offset_data, data)
                    if self.trouble is not None:
                        return
        except tarfile.TarError as error:
            self.trouble = self._not_a_tar() if not self._end else f"it ends early ({error})"
            return
        self.trouble = trouble_behind(self._file, self._end)

    def _not_a_tar(self) -> str:
        self._file.seek(0)
        head = self._file.read(6)
        if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            return "it is compressed, and images are read at any place of a tar: uncompress it"
        return "it is not a tar" if head else "it is empty"


def trouble_behind(file: BinaryIO, end: int) -> str | None:
    """Say what is wrong behind the last file of a tar, which ends at byte `end`; None for a whole.

    A whole tar ends in some blocks of zeros. Readers stop at the first of them, so a hole that a
    broken download left, or a second tar written behind the first, would be lost in silence.
    """
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        return f"it ends early, at byte {end + len(block):,}"
    if block.strip(b"\0"):
        return f"it is damaged at byte {end:,}"
    padding = file.read(_PADDING)
    more = padding.lstrip(b"\0")
    if more:
        place = end + _BLOCK + len(padding) - len(more)
        return (
            f"there is more behind its end mark, at byte {place:,}: damage, or several tars in one"
        )
    if len(padding) == _PADDING:
        return f"there is nothing but zeros from byte {end:,} on, as in half a download"
    return None


def _whole_samples(walk: _Walk) -> Iterator[_Group]:
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


def _groups(walk: _Walk) -> Iterator[tuple[str, _Group]]:
    """Yield the files that stand beside each other under one key."""
    group: _Group = {}
    before = None
    for key, extension, part in walk.parts():
        if before is not None and key != before:
            yield before, group
            group = {}
        before = key
        if part is not None:
            group.setdefault(extension if extension in _TOLD_BY else "", part)
    if walk.trouble is None and before is not None:
        yield before, group


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


def _split(name: str) -> tuple[str, str]:
    """Return (key, extension) of a member: the name up to the first dot of its last part."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def _is_hidden(name: str) -> bool:
    """Whether a member is what some systems add to a tar, such as ._0001.jpg."""
    parts = name.removeprefix("./").split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _examined(group: _Group) -> Sample:
    """Hash and decode the image of a sample and read what stands beside it."""
    image = group[""]
    place: dict[str, Any] = {
        "name": image.name,
        "start": image.start,
        "end": image.start + len(image.data),
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


def _told(group: Mapping[str, _Part]) -> dict[str, Any]:
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
