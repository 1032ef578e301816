"""Ask the teacher about images and texts, once ever: only what the store does not hold.

Images are read and prepared in worker processes, encoded here, and committed shard by shard; an
image that cannot be read is set aside and named, and the run goes on.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.data.views import RecordedView, find_recipe
from attar.device import Processes, ignore_interrupts, naming_dead_workers
from attar.errors import AttarError
from attar.files import check_writable, read_json, write_json
from attar.store.config import EmbedConfig
from attar.store.estimate import estimate_embed
from attar.store.layout import CLEAN
from attar.store.missing import missing_texts
from attar.store.parts import SET_ASIDE, adopt_parts, has_parts, part_of
from attar.store.paying import paid_by
from attar.store.progress import Meter, say
from attar.store.store import Store, open_store
from attar.store.writer import CommitGuard, StoreWriter
from attar.teachers.base import Teacher, Unanswered

logger = logging.getLogger(__name__)

NAMED_FAILURES = 5

Prepare = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Failure:
    row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What a worker hands over: R prepared views of some images, and the images it could not."""

    rows: list[int]
    """[R] rows of the table."""
    views: list[str]
    params: list[str | None]
    pixels: Tensor | None
    """[R, 3, H, W], None when R is 0."""
    failures: list[_Failure]


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One image and the views of it that are missing."""

    row: int
    views: tuple[str, ...]


class PreparedImages(Dataset[_Prepared]):
    """Reads and prepares one image after the other; runs in workers and holds no weights."""

    def __init__(
        self, prepare: Prepare, table: ImageTable, work: Sequence[_Work], config: EmbedConfig
    ) -> None:
        self._prepare = prepare
        self._table = table
        self._work = work
        self._definitions = config.view_definitions()

    def __len__(self) -> int:
        return len(self._work)

    def __getitem__(self, number: int) -> _Prepared:
        work = self._work[number]
        pixels, params = [], []
        try:
            image = read_image(self._table.paths[work.row])
            for view in work.views:
                recorded = self._draw(view, work.row)
                seen = image if recorded is None else self._seen(image, view, recorded)
                pixels.append(self._prepare(seen))
                params.append(None if recorded is None else recorded.to_json())
        except Exception as error:  # one bad file among millions must not end the run
            reason = str(error) or type(error).__name__
            failure = _Failure(row=work.row, reason=reason)
            return _Prepared(rows=[], views=[], params=[], pixels=None, failures=[failure])
        return _Prepared(
            rows=[work.row] * len(work.views),
            views=list(work.views),
            params=params,
            pixels=torch.stack(pixels),
            failures=[],
        )

    def _draw(self, view: str, row: int) -> RecordedView | None:
        if view == CLEAN:
            return None
        one = self._definitions[view]
        return RecordedView.draw(
            str(one["recipe"]), self._table.keys[row], int(one["index"]), int(one["seed"])
        )

    def _seen(self, image: Image.Image, view: str, recorded: RecordedView) -> Image.Image:
        return recorded.apply(image, int(self._definitions[view]["size"]))


def embed_images(
    teacher: Teacher,
    table: ImageTable,
    path: Path,
    config: EmbedConfig,
    processes: Processes | None = None,
) -> Path:
    """Store the teacher's image features of every image (and its recorded views) not yet there.

    Identical files are asked once. Killed at any moment and started again, it asks again at most
    for the shard in flight, and what was paid not at all. Files that cannot be read, or that a
    remote teacher gives no answer to, are named in `path`/set_aside.json. With `processes` every
    one of them calls this, and asks about an equal, consecutive share of the images.

    UsageError: another teacher's store, another writer, no space. AttarError: an embedding that
    is not finite (the image is named), or not one image could be read.
    """
    if config.views:
        find_recipe(config.view_recipe)
    check_writable(path)
    if processes is not None and processes.world > 1:
        return _embed_share(teacher, table, path, config, processes)
    if has_parts(path):
        adopt_parts(path, teacher.info, config.dtype)
    return _fill(teacher, table, path, config)


def _embed_share(
    teacher: Teacher, table: ImageTable, path: Path, config: EmbedConfig, processes: Processes
) -> Path:
    """Ask about this process's share of what the store lacks; the main one joins the parts."""
    processes.wait()  # until all have noted what they read: a writer removes half-written notes
    if processes.is_main:
        adopt_parts(path, teacher.info, config.dtype)
    processes.wait()
    work = missing_work(open_store(path), table, config)
    first, last = (len(work) * (processes.rank + i) // processes.world for i in (0, 1))
    processes.wait()  # until all have seen the same store: a share follows from what it lacks
    if first < last:
        _fill(teacher, table, part_of(path, processes.rank), config, work[first:last])
    processes.wait()
    if processes.is_main:
        adopt_parts(path, teacher.info, config.dtype)
        if work and not Store.open(path).num_images:
            raise AttarError(
                f"none of the {len(work):,} images could be read, see {path / SET_ASIDE}"
            )
    processes.wait()
    return path


def _fill(
    teacher: Teacher,
    table: ImageTable,
    path: Path,
    config: EmbedConfig,
    share: Sequence[_Work] | None = None,
) -> Path:
    """Do the work of a share, by default all that the store at `path` lacks."""
    with paid_by(path, teacher, config) as guard, _open(path, teacher, config, guard) as writer:
        for name, definition in config.view_definitions().items():
            writer.add_view(name, definition)
        store = Store.open(path)
        work = share
        if work is None:
            check_writable(path, estimate_embed(teacher.info, table, store, config).bytes)
            work = missing_work(store, table, config)
        if work:
            failures: list[_Failure] = []
            try:
                _embed_work(teacher, table, work, writer, config, failures)
            finally:
                _set_aside(path, table, failures)
            # Of a share that is small, because little is missing, all may be broken.
            if len(failures) == len(work) and not store.num_images and share is None:
                raise AttarError(
                    f"none of the {len(work):,} images could be read; first: "
                    f"{table.paths[failures[0].row]}: {failures[0].reason}"
                )
    return path


def embed_texts(
    teacher: Teacher,
    texts: Iterable[str],
    path: Path,
    config: EmbedConfig,
    *,
    missing: int | None = None,
) -> Path:
    """Store the teacher's text features of every exact string that is not yet there.

    Errors as in `embed_images`. `missing` is how many the store lacks, where it is known: millions
    of texts are then read from an iterator as they are asked for, and none is kept.
    """
    with paid_by(path, teacher, config) as guard, _open(path, teacher, config, guard) as writer:
        parts: Iterable[list[str]] = missing_texts(Store.open(path), texts)
        if missing is None:
            parts = list(parts)
            missing = sum(len(part) for part in parts)
        if missing:
            with Meter("texts", missing, "texts") as meter, torch.inference_mode():
                for part in parts:
                    for start in range(0, len(part), config.batch_size):
                        some = part[start : start + config.batch_size]
                        _embed_texts(teacher, some, writer)
                        meter.advance(len(some))
            logger.info("embedded %d texts: %s", meter.done, meter.summary)
    return path


def _open(
    path: Path, teacher: Teacher, config: EmbedConfig, guard: CommitGuard | None
) -> AbstractContextManager[StoreWriter]:
    return StoreWriter.open(
        path,
        teacher.info,
        config.dtype,
        shard_rows=config.shard_rows,
        commit_seconds=config.commit_seconds,
        guard=guard,
    )


def _embed_texts(teacher: Teacher, texts: Sequence[str], writer: StoreWriter) -> None:
    try:
        writer.add_texts(texts, _rows(teacher.encode_texts(texts)))
    except Unanswered as partial:
        features = _rows(partial.features)
        good = np.flatnonzero(np.isfinite(features).all(axis=1))
        writer.add_texts([texts[at] for at in good.tolist()], features[good])
        if partial.cause is not None:
            raise partial.cause from None
        at, reason = next(iter(partial.reasons.items()))
        raise AttarError(
            f"{len(partial.reasons)} texts got no answer, the first is {texts[at]!r}: {reason}; "
            "the others are kept: run the same command again"
        ) from None


def missing_work(store: Store | None, table: ImageTable, config: EmbedConfig) -> list[_Work]:
    """Return the work to do in table order; of identical files only the first."""
    views = (CLEAN, *config.view_definitions())
    first = dict(zip(reversed(table.keys), reversed(range(len(table))), strict=True))
    rows = sorted(first.values())
    keys = [table.keys[row] for row in rows]
    lacks = np.ones((len(rows), len(views)), bool)
    if store is not None:
        lacks = np.stack([~store.has_images(keys, view) for view in views], axis=1)
    return [
        _Work(
            row=rows[at], views=tuple(view for view, no in zip(views, lacks[at], strict=True) if no)
        )
        for at in np.flatnonzero(lacks.any(axis=1))
    ]


@naming_dead_workers(
    "run the same command again, with fewer workers or a smaller batch size if memory ran out"
)
def _embed_work(
    teacher: Teacher,
    table: ImageTable,
    work: Sequence[_Work],
    writer: StoreWriter,
    config: EmbedConfig,
    failures: list[_Failure],
) -> None:
    total = sum(len(one.views) for one in work)
    batches = _batches(PreparedImages(teacher.prepare, table, work, config), config)
    with Meter("images", total, "images") as meter, torch.inference_mode():
        for batch in meter.waiting_for(batches):
            failures += batch.failures
            if batch.pixels is not None:
                meter.advance(_embed_batch(teacher, table, batch, writer, failures))
    logger.info("embedded %d images: %s", meter.done, meter.summary)


def _embed_batch(
    teacher: Teacher,
    table: ImageTable,
    batch: _Prepared,
    writer: StoreWriter,
    failures: list[_Failure],
) -> int:
    """Write the teacher's answers, return how many; images without one join the failures."""
    assert batch.pixels is not None
    try:
        features = _rows(teacher.encode_images(batch.pixels))
    except Unanswered as partial:
        features = _rows(partial.features)
        good = np.flatnonzero(np.isfinite(features).all(axis=1))
        _write(writer, table, _select(batch, good.tolist()), features[good])
        reasons = {batch.rows[at]: reason for at, reason in partial.reasons.items()}
        failures += [_Failure(row=row, reason=reason) for row, reason in reasons.items()]
        if partial.cause is not None:
            raise partial.cause from None
        return len(good)
    _write(writer, table, batch, features)
    return len(features)


def _select(batch: _Prepared, places: Sequence[int]) -> _Prepared:
    return _Prepared(
        rows=[batch.rows[at] for at in places],
        views=[batch.views[at] for at in places],
        params=[batch.params[at] for at in places],
        pixels=None,
        failures=[],
    )


def _batches(images: PreparedImages, config: EmbedConfig) -> Iterator[_Prepared]:
    """Return prepared batches of at most `batch_size` views, in order."""
    per_batch = max(1, config.batch_size // (1 + config.views))
    workers = config.workers if len(images) > per_batch else 0
    loader = DataLoader(
        images,
        batch_size=per_batch,
        shuffle=False,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=ignore_interrupts if workers else None,
    )
    return iter(loader)  # which starts the workers


def _collate(parts: Sequence[_Prepared]) -> _Prepared:
    pixels = [part.pixels for part in parts if part.pixels is not None]
    return _Prepared(
        rows=[row for part in parts for row in part.rows],
        views=[view for part in parts for view in part.views],
        params=[params for part in parts for params in part.params],
        pixels=torch.cat(pixels) if pixels else None,
        failures=[failure for part in parts for failure in part.failures],
    )


def _rows(features: Tensor) -> Any:
    return features.float().cpu().numpy()


def _write(writer: StoreWriter, table: ImageTable, batch: _Prepared, features: Any) -> None:
    for view in dict.fromkeys(batch.views):
        at = [number for number, one in enumerate(batch.views) if one == view]
        writer.add_images(
            [table.keys[batch.rows[number]] for number in at],
            [table.names[batch.rows[number]] for number in at],
            view,
            features[at],
            [batch.params[number] for number in at],
        )


def _set_aside(path: Path, table: ImageTable, failures: Sequence[_Failure]) -> None:
    """Name what could not be read; entries of files outside this table are kept."""
    file = path / SET_ASIDE
    before = read_json(file) if file.exists() else []
    mine = set(table.paths)
    entries = [entry for entry in before if entry["path"] not in mine]
    entries += [
        {"path": table.paths[one.row], "reason": one.reason, "by": "teacher"} for one in failures
    ]
    if entries or before:
        write_json(file, entries)
    if failures:
        what = "images could not be read or embedded"
        say(f"{len(failures):,} {what} and were set aside (see {file}):")
        for one in failures[:NAMED_FAILURES]:
            say(f"  {table.paths[one.row]}: {one.reason}")
