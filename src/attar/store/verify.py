"""Trust a store: recompute its checksums, and ask the teacher again for a random sample."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.data.views import RecordedView
from attar.errors import AttarError, UsageError
from attar.files import sha256_file
from attar.store.config import EmbedConfig
from attar.store.layout import (
    CLEAN,
    IMPORTED,
    Kind,
    Shard,
    StoreInfo,
    check_teacher,
    embeddings_file,
    metadata_file,
)
from attar.store.paying import paid_by
from attar.store.shards import damaged
from attar.store.store import Store
from attar.store.writer import store_lock
from attar.teachers.base import Teacher, Unanswered

BATCH = 16
KINDS: tuple[Kind, ...] = ("image", "text")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file of a store that is not what was committed."""

    kind: Kind
    index: int
    """N of the shard."""
    file: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What the teacher's second answers say about the stored ones."""

    images: int
    """Images asked again."""
    texts: int
    """Texts asked again."""
    mean_cosine: float
    worst_cosine: float
    worst_name: str
    """The image or text whose stored feature is farthest from the teacher's new answer."""
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.images:,} images and {self.texts:,} texts asked again: mean cosine "
            f"{self.mean_cosine:.5f}, worst {self.worst_cosine:.5f} ({self.worst_name!r}, "
            f"{self.tolerance} needed)"
        )


def check_files(path: Path) -> tuple[Damage, ...]:
    """Return the files of committed shards whose checksum is wrong; reads every byte."""
    info = StoreInfo.read(path)
    return tuple(
        damage
        for kind in KINDS
        for shard in info.shards(kind)
        for damage in _damages(path, kind, shard)
    )


def repair_store(path: Path) -> tuple[Damage, ...]:
    """Drop every damaged shard, so that embedding again fills the gap; return what was damaged.

    UsageError when the store is being written.
    """
    StoreInfo.read(path)
    with store_lock(path):
        damages = check_files(path)
        lost = {(damage.kind, damage.index) for damage in damages}
        info = StoreInfo.read(path)
        replace(
            info,
            image_shards=tuple(s for s in info.image_shards if ("image", s.index) not in lost),
            text_shards=tuple(s for s in info.text_shards if ("text", s.index) not in lost),
        ).write(path)
        for kind, index in lost:
            embeddings_file(path, kind, index).unlink(missing_ok=True)
            metadata_file(path, kind, index).unlink(missing_ok=True)
    return damages


def verify_store(
    path: Path,
    teacher: Teacher,
    table: ImageTable,
    *,
    sample: int = 64,
    tolerance: float = 0.999,
    seed: int = 0,
) -> VerifyReport:
    """Ask the teacher again for a random sample of images (any view) and of texts.

    Images are found in `table` by content. An imported store may be verified with the teacher
    that it is said to come from. AttarError: a damaged file, or a cosine below `tolerance` (the
    worst is named). UsageError: another teacher's store, or none of its images in the table.
    """
    info = StoreInfo.read(path)
    if not info.teacher.identity.startswith(IMPORTED) or info.teacher.dim != teacher.info.dim:
        check_teacher(path, info.teacher, teacher.info)
    for damage in check_files(path):
        raise damaged(path, damage.file, damage.reason)
    store = Store.open(path)
    random = np.random.default_rng(seed)
    with paid_by(path, teacher, EmbedConfig()) as guard:
        try:
            names, cosines = _verify_images(store, teacher, table, sample, random)
            texts, text_cosines = _verify_texts(store, teacher, sample, random)
        except Unanswered as error:
            raise error.cause or AttarError(f"teacher {teacher.info.name!r}: {error}") from error
        if guard is not None:
            for kind in KINDS:
                guard.after_commit(kind)
    every = np.concatenate([cosines, text_cosines])
    if not len(every):
        raise UsageError(f"{path} holds nothing yet; fill it with attar embed")
    worst = int(np.argmin(every))
    report = VerifyReport(
        images=len(names),
        texts=len(texts),
        mean_cosine=float(every.mean()),
        worst_cosine=float(every[worst]),
        worst_name=[*names, *texts][worst],
        tolerance=tolerance,
    )
    if not report.worst_cosine >= tolerance:
        raise AttarError(
            f"{path} has drifted from teacher {teacher.info.name!r}: {report.worst_name!r} has "
            f"cosine {report.worst_cosine:.4f} with the teacher's new answer (at least {tolerance} "
            f"expected; {int(np.sum(~(every >= tolerance)))} of {len(every)} sampled are below); "
            "embed again into another folder"
        )
    return report


def _damages(path: Path, kind: Kind, shard: Shard) -> list[Damage]:
    found = []
    for file, size, checksum in (
        (
            embeddings_file(path, kind, shard.index),
            shard.embeddings_bytes,
            shard.embeddings_sha256,
        ),
        (metadata_file(path, kind, shard.index), shard.metadata_bytes, shard.metadata_sha256),
    ):
        if not file.is_file():
            reason = "it is missing"
        elif (actual := file.stat().st_size) != size:
            reason = f"{actual} bytes, {size} expected"
        elif sha256_file(file) != checksum:
            reason = "its checksum differs from store.json"
        else:
            continue
        found.append(Damage(kind=kind, index=shard.index, file=file, reason=reason))
    return found


def _verify_images(
    store: Store, teacher: Teacher, table: ImageTable, sample: int, random: np.random.Generator
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the names and cosines of the images asked again."""
    views = store.views_of()
    held = [np.flatnonzero(store.has_images(table.keys, view)) for view in views]
    starts = np.cumsum([0, *(len(rows) for rows in held)])
    if not starts[-1] and store.num_images:
        raise UsageError(
            f"none of the {len(table):,} images given is in {store.path}; give the images that it "
            "was made from"
        )
    chosen = random.choice(starts[-1], size=min(sample, starts[-1]), replace=False)
    numbers = np.searchsorted(starts, chosen, side="right") - 1
    candidates = [
        (int(held[number][at - starts[number]]), views[number])
        for number, at in zip(numbers, chosen, strict=True)
    ]
    all_stored = np.empty(len(candidates), np.int64)
    for number in np.unique(numbers):
        of_view = np.flatnonzero(numbers == number)
        keys = [table.keys[candidates[at][0]] for at in of_view]
        all_stored[of_view] = store.image_rows(keys, views[number])
    names, cosines = [], [np.empty(0)]
    for start in range(0, len(candidates), BATCH):
        part = candidates[start : start + BATCH]
        stored = all_stored[start : start + BATCH]
        pixels = torch.stack(
            [
                teacher.prepare(_seen(store, table.paths[row], view, recorded))
                for (row, view), recorded in zip(part, store.recorded_view(stored), strict=True)
            ]
        )
        with torch.inference_mode():
            answer = teacher.encode_images(pixels).float().cpu().numpy()
        names += [table.names[row] + _suffix(view) for row, view in part]
        cosines.append(_cosines(store.image_features(stored), answer))
    return names, np.concatenate(cosines)


def _verify_texts(
    store: Store, teacher: Teacher, sample: int, random: np.random.Generator
) -> tuple[Sequence[str], NDArray[np.float64]]:
    rows = random.choice(store.num_texts, size=min(sample, store.num_texts), replace=False)
    if not len(rows):
        return [], np.empty(0)
    texts = store.captions(rows)
    with torch.inference_mode():
        answer = teacher.encode_texts(texts).float().cpu().numpy()
    return texts, _cosines(store.text_features(texts), answer)


def _seen(store: Store, path: str, view: str, recorded: RecordedView | None) -> Any:
    """Return the picture that the teacher saw."""
    image = read_image(path)
    definition = store.info.views[view]
    if recorded is None or definition is None:
        return image
    return recorded.apply(image, int(definition["size"]))


def _suffix(view: str) -> str:
    return "" if view == CLEAN else f" ({view})"


def _cosines(stored: NDArray[Any], answer: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine [n] of each pair of rows [n, D]; stored rows need not be exactly unit."""
    a, b = stored.astype(np.float64), answer.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[np.float64] = (a * b).sum(axis=1) / lengths
    return cosines
