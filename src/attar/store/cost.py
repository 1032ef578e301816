"""What embedding would cost, said without asking: queries, money, bytes and time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.data.table import ImageTable
from attar.store.config import EmbedConfig
from attar.store.embed import PreparedImages, missing_work
from attar.store.estimate import (
    ASSUMED_SECONDS,
    CLEAN_ROW_BYTES,
    VIEW_ROW_BYTES,
    remote_seconds,
    seconds_per_image,
)
from attar.store.layout import CLEAN, check_dtype, check_teacher
from attar.store.ledger import Ledger
from attar.store.missing import missing_texts
from attar.store.store import Store
from attar.teachers.base import Teacher
from attar.teachers.remote import RemoteTeacher, as_remote
from attar.teachers.remote_asking import Kind

SAMPLE = 2000
"""Images that are prepared to learn how many bytes one sends; of fewer, every one is."""


@dataclass(frozen=True, kw_only=True)
class EmbedCost:
    """The price of what a store lacks. Queries and bytes are exact up to `SAMPLE` images."""

    images: int
    """Image queries, every view counted; what was answered already is not asked again."""
    texts: int
    probes: int
    """Queries that tell whether the model is still the same."""
    price: float | None
    """Of one query."""
    upload_bytes: int
    disk_bytes: int | None
    """None when the dimension is not known before the first answer."""
    seconds: float
    assumed: bool = False
    """Whether the time of one request had to be assumed."""

    @property
    def queries(self) -> int:
        """All queries."""
        return self.images + self.texts + self.probes

    @property
    def money(self) -> float | None:
        """What the queries cost, None without a price."""
        return None if self.price is None else self.queries * self.price

    def __str__(self) -> str:
        """Return one line for a person."""
        money = "" if self.money is None else f", {self.money:,.4g} at {self.price:g} a query"
        disk = "unknown before the first answer"
        if self.disk_bytes is not None:
            disk = f"{self.disk_bytes / 1e6:,.2f} MB"
        guess = f" (assuming {ASSUMED_SECONDS:g} s a request)" if self.assumed else ""
        return (
            f"{self.queries:,} queries ({self.images:,} images, {self.texts:,} texts, "
            f"{self.probes:,} probes){money}; {self.upload_bytes / 1e6:,.2f} MB sent, {disk} on "
            f"disk; about {self.seconds:,.0f} s{guess}"
        )


@dataclass(frozen=True)
class _Sampled:
    """What is known of one kind of question."""

    rows: int
    """Rows to commit."""
    queries: int
    bytes: int


def embed_cost(
    teacher: Teacher,
    table: ImageTable,
    path: Path,
    config: EmbedConfig,
    texts: Iterable[str] = (),
) -> EmbedCost:
    """Return what `embed_images` and `embed_texts` would cost; nothing is asked or written.

    UsageError when the store belongs to another teacher or holds another dtype.
    """
    remote = as_remote(teacher)
    ledger = Ledger(path) if remote is not None else None
    info = teacher.info if remote is None else remote.known_info
    store = Store.open(path) if (path / "store.json").is_file() else None
    if store is not None:
        if info is None and remote is not None:
            info = remote.info_with(store.info.teacher.dim)
        if info is not None:
            check_teacher(path, store.info.teacher, info)
        check_dtype(path, store.info.dtype, config.dtype)
    work = missing_work(store, table, config)
    clean = sum(CLEAN in one.views for one in work)
    views = sum(len(one.views) for one in work) - clean
    new_texts = [text for part in missing_texts(store, texts) for text in part]
    disk = None
    if info is not None:
        row = info.dim * np.dtype(config.dtype).itemsize
        disk = (clean + len(new_texts)) * (row + CLEAN_ROW_BYTES) + views * (row + VIEW_ROW_BYTES)
    if remote is None or ledger is None:
        images = clean + views
        pace = seconds_per_image(teacher, config) if images else 0.0
        return EmbedCost(
            images=images,
            texts=len(new_texts),
            probes=0,
            price=config.price,
            upload_bytes=0,
            disk_bytes=disk,
            seconds=images * pace,
        )
    image = _sample_images(remote, ledger, table, work, config)
    questions = [text.encode() for text in new_texts]
    text = _count(remote, ledger, "text", questions, len(questions), config)
    return _remote_cost(remote, ledger, {"image": image, "text": text}, disk, config)


def _remote_cost(
    teacher: RemoteTeacher,
    ledger: Ledger,
    asked: dict[Kind, _Sampled],
    disk: int | None,
    config: EmbedConfig,
) -> EmbedCost:
    known, seconds = ledger.probes(), ledger.request_seconds
    queries = sum(of.queries for of in asked.values())
    time = remote_seconds(queries, config, seconds or ASSUMED_SECONDS)
    per_commit = -(-config.shard_rows // config.batch_size) * config.batch_size
    probes: dict[Kind, int] = {}
    if any(of.rows for of in asked.values()):
        for kind in teacher.kinds:
            met = 1 if kind in known else 2
            probes[kind] = met + -(-asked[kind].rows // per_commit)
        probes[teacher.kinds[0]] += int(time // config.commit_seconds)
    sent = sum(of.bytes for of in asked.values())
    return EmbedCost(
        images=asked["image"].queries,
        texts=asked["text"].queries,
        probes=sum(probes.values()),
        price=config.price,
        upload_bytes=sent + sum(n * teacher.probe_bytes(kind) for kind, n in probes.items()),
        disk_bytes=disk,
        seconds=time + sum(probes.values()) * (seconds or ASSUMED_SECONDS),
        assumed=seconds is None,
    )


def _sample_images(
    teacher: RemoteTeacher,
    ledger: Ledger,
    table: ImageTable,
    work: Sequence[Any],
    config: EmbedConfig,
) -> _Sampled:
    """Prepare every image, or an even sample of many, as they would be sent."""
    if not work:
        return _Sampled(0, 0, 0)
    images = PreparedImages(teacher.prepare, table, work, config)
    places = np.unique(np.linspace(0, len(work) - 1, min(SAMPLE, len(work))).astype(int))
    questions = []
    for place in places.tolist():
        pixels = images[place].pixels
        if pixels is not None:
            questions += [teacher.image_question(one) for one in pixels]
    rows = sum(len(one.views) for one in work)
    looked_at = sum(len(work[place].views) for place in places.tolist())
    return _count(
        teacher, ledger, "image", questions, round(rows * len(questions) / looked_at), config
    )


def _count(
    teacher: RemoteTeacher,
    ledger: Ledger,
    kind: Kind,
    questions: Sequence[bytes],
    rows: int,
    config: EmbedConfig,
) -> _Sampled:
    """Scale what the questions would cost to `rows` of them; what was answered costs nothing."""
    new = {teacher.digest(kind, one): one for one in questions}
    asked = [one for digest, one in new.items() if ledger.answer(digest) is None]
    size = config.request_size
    sent = sum(
        teacher.request_bytes(kind, asked[at : at + size]) for at in range(0, len(asked), size)
    )
    scale = rows / len(questions) if questions else 0.0
    return _Sampled(rows, round(len(asked) * scale), round(sent * scale))
