"""Rows spread over shards, read through memory maps, and found by key."""

import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attar.errors import AttarError
from attar.store.layout import Kind, Shard, StoreInfo, embeddings_file, metadata_file

# Each map holds a file descriptor, and systems often allow a process only 1024 of them.
OPEN_MAPS = 256
OPEN_TABLES = 128

Key = TypeVar("Key")
Item = TypeVar("Item")


def pack_keys(keys: Sequence[str]) -> NDArray[np.bytes_]:
    """Return the first 16 bytes of each hex sha256 as an array [n] of dtype S16.

    128 bits keep the index small (24 bytes a row with the row number) and collisions out of
    reach: among a billion keys the chance of one is about 1e-21.
    """
    return np.frombuffer(bytes.fromhex("".join(key[:32] for key in keys)), dtype="S16")


class KeyIndex:
    """From key to row number by binary search; about 24 bytes a row."""

    def __init__(self, keys: NDArray[np.bytes_], rows: NDArray[np.int64]) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._rows = rows[order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, packed: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Return the row of each packed key [n], -1 where there is none."""
        if not len(self) or not len(packed):
            return np.full(len(packed), -1, np.int64)
        at = np.searchsorted(self._keys, packed).clip(max=len(self) - 1)
        return np.where(self._keys[at] == packed, self._rows[at], -1)


class ShardedRows:
    """The committed rows of one kind, numbered from 0 over the shards in stored order."""

    def __init__(self, store: Path, kind: Kind, info: StoreInfo) -> None:
        self._store = store
        self._kind: Kind = kind
        self._shards = info.shards(kind)
        self._dim = info.teacher.dim
        self._dtype = np.dtype(info.dtype)
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)
        self._maps: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self._tables: OrderedDict[tuple[int, tuple[str, ...]], Any] = OrderedDict()
        self._indices: dict[str | None, KeyIndex] = {}
        for shard in self._shards:
            self._check_sizes(shard)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        # A worker maps the files itself: a pickled map would carry a copy of every row.
        return {**self.__dict__, "_maps": OrderedDict(), "_tables": OrderedDict()}

    def features(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the unit embeddings [n, D] of the rows [n], in the stored dtype."""
        out = np.empty((len(rows), self._dim), self._dtype)
        for shard, where, inside in self._by_shard(rows):
            array = self._map(shard)
            out[where] = array[inside]
            _release(array)
        return out

    def scan(self, batch: int, start: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, embeddings [n, D]) from row `start` on, n at most `batch`.

        A shard is mapped for as long as it is read.
        """
        for number, end in enumerate(self._starts[1:].tolist()):
            first = int(self._starts[number])
            if end > start:
                array = self._load(number)
                for at in range(max(first, start), end, batch):
                    yield at, np.array(array[at - first : at - first + batch])

    def columns(self, rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, list[Any]]:
        """Return the named metadata columns of the rows [n], each as a list [n]."""
        out: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
        for shard, where, inside in self._by_shard(rows):
            table = self._table(shard, tuple(names))
            for name in names:
                column = table.column(name).chunk(0)
                for at, row in zip(where.tolist(), inside.tolist(), strict=True):
                    out[name][at] = column[row].as_py()
        return out

    def find(self, packed: NDArray[np.bytes_], view: str | None = None) -> NDArray[np.int64]:
        """Return the row of each packed key [n] in a view (in any for None), -1 where none is.

        Without an index every key of the store is read once, a shard at a time: memory follows the
        keys that are asked for and not the size of the store. Of equal keys the first row counts.
        """
        if view in self._indices:
            return self._indices[view].find(packed)
        if not len(packed):
            return np.empty(0, np.int64)
        wanted, places = np.unique(packed, return_inverse=True)
        found = np.full(len(wanted), -1, np.int64)
        for keys, rows in self._keys(view):
            at = np.searchsorted(wanted, keys).clip(max=len(wanted) - 1)
            here = np.flatnonzero((wanted[at] == keys) & (found[at] < 0))[::-1]
            found[at[here]] = rows[here]  # backwards, so that the first of equal keys stays
        return found[places]

    def index(self, view: str | None = None) -> None:
        """Keep an index of a view's keys, for many look-ups of few keys."""
        if view not in self._indices:
            keys, rows = [np.empty(0, "S16")], [np.empty(0, np.int64)]
            for more_keys, more_rows in self._keys(view):
                keys.append(more_keys)
                rows.append(more_rows)
            self._indices[view] = KeyIndex(np.concatenate(keys), np.concatenate(rows))

    def _keys(self, view: str | None) -> Iterator[tuple[NDArray[np.bytes_], NDArray[np.int64]]]:
        """Yield the packed keys [r] and rows [r] of a view, shard by shard."""
        for number, shard in enumerate(self._shards):
            if view is not None and not shard.views.get(view):
                continue
            table = self._read_table(shard, ["key"] if view is None else ["key", "view"])
            inside = np.arange(shard.rows)
            if view is not None:
                inside = inside[np.asarray(table["view"].to_numpy()) == view]
            keys = pack_keys(table["key"].take(pa.array(inside)).to_pylist())
            yield keys, inside + self._starts[number]

    def _by_shard(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (shard number, positions in `rows`, rows inside the shard)."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a store with {len(self)} rows")
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            where = np.flatnonzero(numbers == number)
            yield int(number), where, rows[where] - self._starts[number]

    def _map(self, number: int) -> NDArray[Any]:
        return _cached(self._maps, number, OPEN_MAPS, lambda: self._load(number))

    def _load(self, number: int) -> NDArray[Any]:
        shard = self._shards[number]
        file = embeddings_file(self._store, self._kind, shard.index)
        try:
            array: NDArray[Any] = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise damaged(self._store, file, str(error)) from error
        if array.shape != (shard.rows, self._dim) or array.dtype != self._dtype:
            raise damaged(self._store, file, f"it holds {array.dtype} {array.shape}")
        return array

    def _table(self, number: int, names: tuple[str, ...]) -> Any:
        return _cached(
            self._tables,
            (number, names),
            OPEN_TABLES,
            lambda: self._read_table(self._shards[number], list(names)).combine_chunks(),
        )

    def _read_table(self, shard: Shard, columns: list[str]) -> Any:
        file = metadata_file(self._store, self._kind, shard.index)
        try:
            table = pq.read_table(file, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise damaged(self._store, file, str(error)) from error
        if table.num_rows != shard.rows:
            raise damaged(self._store, file, f"{table.num_rows} rows, {shard.rows} expected")
        return table

    def _check_sizes(self, shard: Shard) -> None:
        for file, expected in (
            (embeddings_file(self._store, self._kind, shard.index), shard.embeddings_bytes),
            (metadata_file(self._store, self._kind, shard.index), shard.metadata_bytes),
        ):
            if not file.is_file():
                raise damaged(self._store, file, "it is missing")
            if (size := file.stat().st_size) != expected:
                raise damaged(self._store, file, f"{size} bytes, {expected} expected")


def _release(array: NDArray[Any]) -> None:
    """Take a map's pages out of this process; they stay in the system's cache for the next time.

    Else a process that reads rows at random holds, sooner or later, every page of the store.
    """
    mapping: Any = array.base
    if hasattr(mapping, "madvise"):  # Windows has none
        mapping.madvise(mmap.MADV_DONTNEED)


def damaged(store: Path, file: Path, reason: str) -> AttarError:
    """Return the error for a shard file that cannot be trusted, with the way out."""
    return AttarError(
        f"{file} is damaged ({reason}); drop its shard with: attar store verify {store} --repair, "
        "then run the same attar embed again to fill the gap"
    )


def _cached(cache: OrderedDict[Key, Item], key: Key, limit: int, load: Callable[[], Item]) -> Item:
    """Return the item at `key`, loading it when absent and dropping the one unused for longest."""
    if key not in cache:
        cache[key] = load()
        if len(cache) > limit:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
