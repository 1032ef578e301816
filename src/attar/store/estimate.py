"""What embedding will cost, told before the teacher is asked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from attar.data.table import ImageTable
from attar.store.config import EmbedConfig
from attar.store.layout import CLEAN, check_dtype, check_teacher
from attar.store.store import Store
from attar.teachers.base import Teacher, TeacherInfo
from attar.teachers.remote import as_remote

CLEAN_ROW_BYTES = 130
"""Metadata of a clean image or a text in Parquet: mostly the 64 characters of its key."""
VIEW_ROW_BYTES = 260
"""Metadata of a recorded view: its parameters beside the key."""

ASSUMED_SECONDS = 1.0
"""Of a request to a remote teacher that this store has not asked yet."""


@dataclass(frozen=True, kw_only=True)
class EmbedEstimate:
    """The teacher's work that is still to do, and the disk it will take."""

    missing_images: int
    """Image queries: rows of (image, view) that the store does not hold; duplicates count once."""
    missing_texts: int
    """Text queries."""
    bytes: int
    """Bytes on disk that the new rows take."""

    def seconds(self, seconds_per_image: float) -> float:
        """Return the time of the image queries at a measured pace (see `seconds_per_image`)."""
        return self.missing_images * seconds_per_image


def estimate_embed(
    teacher: TeacherInfo,
    table: ImageTable,
    store: Store | None,
    config: EmbedConfig,
    texts: Sequence[str] = (),
) -> EmbedEstimate:
    """Count what `embed_images` and `embed_texts` would ask; `store` is None before the first run.

    UsageError when the store belongs to another teacher or holds another dtype.
    """
    if store is not None:
        check_teacher(store.path, store.info.teacher, teacher)
        check_dtype(store.path, store.info.dtype, config.dtype)
    keys = list(dict.fromkeys(table.keys))
    unique_texts = list(dict.fromkeys(texts))

    def missing(view: str) -> int:
        return len(keys) if store is None else int(np.sum(~store.has_images(keys, view)))

    clean = missing(CLEAN)
    views = sum(missing(view) for view in config.view_definitions())
    new_texts = len(unique_texts) if store is None else int(np.sum(~store.has_texts(unique_texts)))
    row = teacher.dim * np.dtype(config.dtype).itemsize
    return EmbedEstimate(
        missing_images=clean + views,
        missing_texts=new_texts,
        bytes=(clean + new_texts) * (row + CLEAN_ROW_BYTES) + views * (row + VIEW_ROW_BYTES),
    )


def text_bytes(teacher: TeacherInfo, count: int, config: EmbedConfig) -> int:
    """Return the bytes on disk that `count` more texts take."""
    return count * (teacher.dim * np.dtype(config.dtype).itemsize + CLEAN_ROW_BYTES)


def remote_seconds(queries: int, config: EmbedConfig, seconds: float = ASSUMED_SECONDS) -> float:
    """Return the time of `queries` when one request takes `seconds`."""
    batches, rest = divmod(queries, config.batch_size)
    sizes = [config.batch_size] * batches + [rest] * bool(rest)
    requests = [-(-size // config.request_size) for size in sizes]
    waves = sum(-(-count // config.parallel) for count in requests)
    return max(waves * seconds, sum(requests) / config.rate if config.rate else 0.0)


def seconds_per_image(teacher: Teacher, config: EmbedConfig, batches: int = 2) -> float:
    """Time the bare teacher on grey images (no image of the user is asked twice).

    A remote teacher is not asked: a second is assumed for each of its requests.
    """
    if as_remote(teacher) is not None:
        return remote_seconds(config.batch_size, config) / config.batch_size
    pixels = teacher.prepare(Image.new("RGB", (256, 256), "grey"))
    batch = pixels.expand(config.batch_size, *pixels.shape).contiguous()
    with torch.inference_mode():
        teacher.encode_images(batch[:2]).cpu()  # warm up
        start = time.perf_counter()
        for _ in range(batches):
            teacher.encode_images(batch).cpu()
    return (time.perf_counter() - start) / (batches * config.batch_size)
