"""Write a store: one writer at a time, whole shards or nothing.

A shard is written under temporary names, synced, renamed (embeddings, then metadata), and only
then listed in store.json, itself replaced by rename. So after a kill at any moment everything
listed is whole, and what is lost is at most the shard in flight.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import ArrayLike, NDArray

from attar.errors import AttarError, UsageError
from attar.files import (
    abandoned,
    atomic_path,
    check_writable,
    sha256_file,
    sha256_text,
    sync_folder,
)
from attar.store.layout import (
    EMBEDDINGS,
    METADATA,
    Kind,
    Shard,
    StoreInfo,
    check_dtype,
    check_teacher,
    embeddings_file,
    metadata_file,
)
from attar.teachers.base import TeacherInfo

LOCK_WAIT_SECONDS = 1.0
"""A process that was just killed needs a moment to give its lock back."""

COLUMNS: Mapping[Kind, tuple[str, ...]] = {
    "image": ("image_path", "key", "view", "view_params"),
    "text": ("caption", "key"),
}


@contextmanager
def store_lock(path: Path) -> Iterator[None]:
    """Hold the right to write to a store; UsageError when another process has it."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=LOCK_WAIT_SECONDS)
    except Timeout as error:
        raise UsageError(
            f"{path} is being written by another process; wait until it ends or choose another "
            "store folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


class CommitGuard(Protocol):
    """Whoever has a say before rows become a shard."""

    def before_commit(self, kind: Kind) -> None:
        """Raise when the pending rows must not be committed; they are dropped then."""

    def after_commit(self, kind: Kind) -> None:
        """The rows are in a shard."""


@dataclass
class _Pending:
    """Rows that are not yet in a committed shard."""

    columns: dict[str, list[Any]]
    features: list[NDArray[Any]] = field(default_factory=list)
    rows: int = 0
    since: float = 0.0


class StoreWriter:
    """The one writer of a store: `with StoreWriter.open(path, teacher.info) as writer`.

    Leaving the block commits what is pending, also when it is left by an exception: the teacher
    was asked for those rows already.
    """

    def __init__(
        self,
        path: Path,
        info: StoreInfo,
        *,
        shard_rows: int,
        commit_seconds: float,
        guard: CommitGuard | None = None,
    ) -> None:
        self.path = path
        self.info = info
        self._shard_rows = shard_rows
        self._commit_seconds = commit_seconds
        self._guard = guard
        self._pending: dict[Kind, _Pending] = {kind: _new_pending(kind) for kind in COLUMNS}

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        teacher: TeacherInfo,
        dtype: str = "float16",
        *,
        shard_rows: int = 16384,
        commit_seconds: float = 120.0,
        guard: CommitGuard | None = None,
    ) -> Iterator[Self]:
        """Open or create a store for writing.

        UsageError, before anything is written: another writer, a store of another teacher or
        dtype, a folder that holds something else, no permission.
        """
        check_writable(path)
        refuse_foreign_folder(path)
        path.mkdir(parents=True, exist_ok=True)
        with store_lock(path):
            if (path / "store.json").exists():
                info = StoreInfo.read(path)
                check_teacher(path, info.teacher, teacher)
                check_dtype(path, info.dtype, dtype)
            else:
                info = StoreInfo(teacher=teacher, dtype=dtype)
                info.write(path)
            _remove_leftovers(path, info)
            writer = cls(
                path, info, shard_rows=shard_rows, commit_seconds=commit_seconds, guard=guard
            )
            try:
                yield writer
            finally:
                writer.commit()

    def add_view(self, name: str, definition: Mapping[str, Any]) -> None:
        """Declare a recorded view; UsageError when the name stands for another definition."""
        known = self.info.views.get(name)
        if name in self.info.views and known != dict(definition):
            raise UsageError(
                f"{self.path} has view {name!r} drawn from {known}, not from {dict(definition)}; "
                "choose another store folder"
            )
        if name not in self.info.views:
            self.info = replace(self.info, views={**self.info.views, name: dict(definition)})
            self.info.write(self.path)

    def add_images(
        self,
        keys: Sequence[str],
        names: Sequence[str],
        view: str,
        features: ArrayLike,
        params: Sequence[str | None] | None = None,
    ) -> None:
        """Add rows of one view; keys and names [n], features [n, D] of any scale.

        `params` [n] are `RecordedView.to_json()` of each row, None for the clean view.

        Features are brought to unit length and to the store's dtype. AttarError names the image
        whose feature is not finite or zero. Keys that are stored already are the caller's affair:
        a reader takes the first row.
        """
        if view not in self.info.views:
            raise ValueError(f"view {view!r} was not declared with add_view")
        self._add(
            "image",
            {
                "image_path": list(names),
                "key": list(keys),
                "view": [view] * len(keys),
                "view_params": list(params or [None] * len(keys)),
            },
            _unit_rows(features, names, self.info, "image"),
        )

    def add_texts(self, texts: Sequence[str], features: ArrayLike) -> None:
        """Add rows of texts [n] with features [n, D] of any scale; errors as in `add_images`."""
        keys = [sha256_text(text) for text in texts]
        rows = _unit_rows(features, texts, self.info, "text")
        self._add("text", {"caption": list(texts), "key": keys}, rows)

    def adopt(self, other: Path, info: StoreInfo) -> None:
        """Take over the images of another store of the same teacher, in its order.

        Its files are linked (copied where links are not to be had), and all listed at once. A shard
        that is listed here already, because an earlier call was killed, is not taken twice.
        """
        self.commit()
        for name, definition in info.views.items():
            if definition is not None:
                self.add_view(name, definition)
        known = {shard.metadata_sha256 for shard in self.info.image_shards}
        added: list[Shard] = []
        for shard in info.image_shards:
            if shard.metadata_sha256 not in known:
                index = _free_index((*self.info.image_shards, *added))
                for file in (embeddings_file, metadata_file):
                    _link(file(other, "image", shard.index), file(self.path, "image", index))
                added.append(replace(shard, index=index))
        shards = sorted((*self.info.image_shards, *added), key=lambda one: one.index)
        self.info = replace(self.info, image_shards=tuple(shards))
        self.info.write(self.path)
        sync_folder(self.path)

    def commit(self) -> None:
        """Commit all pending rows now."""
        for kind in COLUMNS:
            self._commit(kind)

    def _add(self, kind: Kind, columns: Mapping[str, list[Any]], rows: NDArray[Any]) -> None:
        pending = self._pending[kind]
        if not len(rows):
            return
        if not pending.rows:
            pending.since = time.monotonic()
        for name, values in columns.items():
            if len(values) != len(rows):
                raise ValueError(f"{len(values)} values of {name} for {len(rows)} features")
            pending.columns[name].extend(values)
        pending.features.append(rows)
        pending.rows += len(rows)
        old = time.monotonic() - pending.since >= self._commit_seconds
        if old or pending.rows >= self._shard_rows:
            self._commit(kind)

    def _commit(self, kind: Kind) -> None:
        pending = self._pending[kind]
        if not pending.rows:
            return
        if self._guard is not None:
            self._pending[kind] = _new_pending(kind)
            self._guard.before_commit(kind)
        index = _free_index(self.info.shards(kind))
        try:
            shard = _write_shard(self.path, kind, index, pending)
            shards = tuple(sorted((*self.info.shards(kind), shard), key=lambda one: one.index))
            info = (
                replace(self.info, image_shards=shards)
                if kind == "image"
                else replace(self.info, text_shards=shards)
            )
            info.write(self.path)
            sync_folder(self.path)
        except OSError as error:
            raise AttarError(
                f"cannot write to {self.path} ({error.strerror or error}); committed shards are "
                "kept: make room and run the same command again"
            ) from error
        self.info = info
        self._pending[kind] = _new_pending(kind)
        if self._guard is not None:
            self._guard.after_commit(kind)


def _new_pending(kind: Kind) -> _Pending:
    return _Pending(columns={name: [] for name in COLUMNS[kind]})


def _free_index(shards: Sequence[Shard]) -> int:
    used = {shard.index for shard in shards}
    return next(number for number in count() if number not in used)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        try:
            temporary.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, temporary)


def _write_shard(store: Path, kind: Kind, index: int, pending: _Pending) -> Shard:
    embeddings = embeddings_file(store, kind, index)
    metadata = metadata_file(store, kind, index)
    schema = pa.schema([(name, pa.string()) for name in COLUMNS[kind]])
    with atomic_path(embeddings) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(pending.features))
    with atomic_path(metadata) as temporary:
        pq.write_table(pa.table(pending.columns, schema=schema), temporary)
    sync_folder(embeddings.parent)
    sync_folder(metadata.parent)
    return Shard(
        index=index,
        rows=pending.rows,
        embeddings_bytes=embeddings.stat().st_size,
        embeddings_sha256=sha256_file(embeddings),
        metadata_bytes=metadata.stat().st_size,
        metadata_sha256=sha256_file(metadata),
        views=dict(Counter(pending.columns["view"])) if kind == "image" else {},
    )


def _unit_rows(
    features: ArrayLike, names: Sequence[str], info: StoreInfo, what: str
) -> NDArray[Any]:
    """Return features [n, D] at unit length in the store's dtype; AttarError names a bad row."""
    rows = np.asarray(features, dtype=np.float32)
    if rows.shape != (len(names), info.teacher.dim):
        raise AttarError(
            f"teacher {info.teacher.name!r} gave features of shape {rows.shape} for {len(names)} "
            f"{what}s; expected ({len(names)}, {info.teacher.dim})"
        )
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise AttarError(
            f"teacher {info.teacher.name!r} gave an embedding that is zero or not finite for "
            f"{what} {names[bad[0]]!r}; check the {what} and the teacher's weights and precision"
        )
    return (rows / norms).astype(info.dtype)


def refuse_foreign_folder(path: Path) -> None:
    """Refuse a folder with someone's embeddings but no store.json: they would pass for leftovers.

    store.json is the first file of a store, so no crash of ours leaves this.
    """
    if (path / "store.json").exists():
        return
    for name in (*EMBEDDINGS.values(), *METADATA.values()):
        if (path / name).exists():
            raise UsageError(
                f"{path} holds {name}/ but no store.json, so it is not a store of attar; choose "
                "another folder, or take published embeddings over with: attar store import"
            )


def _remove_leftovers(store: Path, info: StoreInfo) -> None:
    """Remove what a killed writer left: files of shards that store.json does not list."""
    for kind in COLUMNS:
        listed = {
            file(store, kind, shard.index)
            for shard in info.shards(kind)
            for file in (embeddings_file, metadata_file)
        }
        for folder, pattern in (
            (EMBEDDINGS[kind], f"{EMBEDDINGS[kind]}_*.npy"),
            (METADATA[kind], "metadata_*.parquet"),
        ):
            found = [*(store / folder).glob(pattern), *(store / folder).glob(".*.partial")]
            for file in found:
                if file not in listed:
                    file.unlink(missing_ok=True)
    for file in filter(abandoned, store.glob(".*.partial")):  # notes are written without the lock
        file.unlink(missing_ok=True)
