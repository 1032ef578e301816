"""Read a store: what the teacher said about images (by content and view) and texts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from attar.data.views import RecordedView
from attar.errors import AttarError
from attar.files import sha256_text
from attar.store.layout import CLEAN, IMPORTED, StoreInfo
from attar.store.ledger import LEDGER, Ledger
from attar.store.shards import ShardedRows, pack_keys


@dataclass(frozen=True, kw_only=True)
class StoredImages:
    """Consecutive rows of a store, all columns of the same length n."""

    rows: NDArray[np.int64]
    """[n] row numbers."""
    keys: list[str]
    """[n] sha256 of the file's bytes."""
    names: list[str]
    """[n] path relative to the data root when the image was embedded."""
    views: list[str]
    features: NDArray[Any]
    """[n, D] unit rows in the stored dtype."""


class Store:
    """A store opened for reading: embeddings stay on disk, memory-mapped.

    It shows what was committed when it was opened; open it again after writing more. It may be
    pickled to worker processes.
    """

    def __init__(self, path: Path, info: StoreInfo) -> None:
        self.path = path
        self.info = info
        self._images = ShardedRows(path, "image", info)
        self._texts = ShardedRows(path, "text", info)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a store; UsageError when there is none, AttarError when a file is damaged."""
        return cls(path, StoreInfo.read(path))

    @property
    def num_images(self) -> int:
        """Rows of images, every view counted."""
        return len(self._images)

    @property
    def num_texts(self) -> int:
        """Rows of texts."""
        return len(self._texts)

    def views_of(self) -> tuple[str, ...]:
        """Return the names of the views in the store; "clean" is the first."""
        return tuple(self.info.views)

    def has_images(self, keys: Sequence[str], view: str = CLEAN) -> NDArray[np.bool_]:
        """Return [n] whether each key (hex sha256 of the file's bytes) has a row in the view."""
        return self._images.find(pack_keys(keys), view) >= 0

    def views_with(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the recorded views (not "clean") that hold all of `keys`."""
        views = (view for view in self.views_of() if view != CLEAN)
        return tuple(view for view in views if self.has_images(keys, view).all())

    def has_texts(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Return [n] whether each exact string has a row."""
        return self._texts.find(_packed(texts)) >= 0

    def index_texts(self) -> None:
        """Keep an index of the texts (24 bytes each): a look-up then need not read every key."""
        self._texts.index()

    def index_images(self, view: str = CLEAN) -> None:
        """Keep an index of a view's images, see `index_texts`."""
        self._images.index(view)

    def image_rows(self, keys: Sequence[str], view: str = CLEAN) -> NDArray[np.int64]:
        """Return the row [n] of each key in the view; AttarError when any is missing."""
        rows = self._images.find(pack_keys(keys), view)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise AttarError(
                f"{len(missing):,} of {len(keys):,} images have no {view!r} embedding in "
                f"{self.path} (first: key {keys[missing[0]][:12]}); {self._way_out('images')}"
            )
        return rows

    def image_features(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the teacher's unit image features [n, D] of the rows [n], in the stored dtype."""
        return self._images.features(rows)

    def text_features(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return the teacher's unit text features [n, D]; AttarError when any is missing."""
        return self._texts.features(self.text_rows(texts))

    def text_rows(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the row [n] of each exact string; AttarError when any is missing."""
        rows = self._texts.find(_packed(texts))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise AttarError(
                f"{len(missing):,} of {len(texts):,} texts have no embedding in {self.path} "
                f"(first: {texts[missing[0]]!r}); {self._way_out('texts')}"
            )
        return rows

    def text_rows_of(self, parts: Iterable[Sequence[str]]) -> NDArray[np.int64]:
        """Return the rows of all parts' texts, one after the other; they are never all in memory.

        AttarError when any is missing.
        """
        rows = self._texts.find(np.concatenate([np.empty(0, "S16"), *map(_packed, parts)]))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise AttarError(
                f"{len(missing):,} of {len(rows):,} texts have no embedding in {self.path} "
                f"(first: text {missing[0] + 1:,}); {self._way_out('texts')}"
            )
        return rows

    def features_of_texts(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return the teacher's unit text features [n, D] of the rows [n], in the stored dtype."""
        return self._texts.features(rows)

    def recorded_view(self, rows: NDArray[np.int64]) -> list[RecordedView | None]:
        """Return the augmentation [n] in which the teacher saw each row, None for clean rows.

        Equal to `RecordedView.draw` with the view's definition in `info.views` and the key of the
        image, which is the faster way at random: here a column of a whole shard is decoded for
        each shard that is not at hand.
        """
        params = self._images.columns(rows, ["view_params"])["view_params"]
        return [None if text is None else RecordedView.from_json(text) for text in params]

    def captions(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the exact string [n] of each row of texts."""
        return self._texts.columns(rows, ["caption"])["caption"]

    def iterate_images(self, batch: int) -> Iterator[StoredImages]:
        """Yield all rows of all views in stored order, up to `batch` at a time."""
        for start in range(0, self.num_images, batch):
            rows = np.arange(start, min(start + batch, self.num_images), dtype=np.int64)
            columns = self._images.columns(rows, ["key", "image_path", "view"])
            yield StoredImages(
                rows=rows,
                keys=columns["key"],
                names=columns["image_path"],
                views=columns["view"],
                features=self.image_features(rows),
            )

    def scan_texts(self, batch: int, start: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first row, unit text features [n, D]) from row `start` on, n at most `batch`.

        Only the shard that is being read is open, so a scan takes as little memory at any size.
        """
        return self._texts.scan(batch, start)

    def image_names(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the path [n] that each row's image had below its data root."""
        return self._images.columns(rows, ["image_path"])["image_path"]

    def _way_out(self, what: str) -> str:
        if self.info.teacher.identity.startswith(IMPORTED):
            return f"the store was imported, so import embeddings that cover these {what}"
        classes = " --classes FILE" if what == "texts" else ""
        return (
            f"embed them with: attar embed --data DATA{classes} --teacher "
            f"{self.info.teacher.name} --out {self.path}"
        )


def _packed(texts: Sequence[str]) -> NDArray[np.bytes_]:
    return pack_keys([sha256_text(text) for text in texts])


def open_store(path: Path) -> Store | None:
    """Return the store of a folder, or None where there is none yet."""
    return Store.open(path) if (path / "store.json").is_file() else None


def store_info(path: Path) -> dict[str, Any]:
    """Return what `attar store info` shows: teacher, dtype, views, counts, shards and bytes."""
    info = StoreInfo.read(path)
    shards = (*info.image_shards, *info.text_shards)
    ledger = Ledger(path) if (path / LEDGER).is_file() else None
    return {
        "path": str(path),
        "teacher": info.teacher.name,
        "identity": info.teacher.identity,
        "licence": info.teacher.licence,
        "dim": info.teacher.dim,
        "logit_scale": info.teacher.logit_scale,
        "dtype": info.dtype,
        "views": info.counts["images"],
        "image_rows": info.counts["image_rows"],
        "text_rows": info.counts["text_rows"],
        "image_shards": len(info.image_shards),
        "text_shards": len(info.text_shards),
        "bytes": sum(shard.embeddings_bytes + shard.metadata_bytes for shard in shards),
        **(
            {"paid_queries": ledger.paid_queries, "unsure_queries": ledger.unsure} if ledger else {}
        ),
    }
