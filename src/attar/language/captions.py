"""Captions of images, written as a manifest that every command reads as `--data`."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.data.manifest import MANIFEST_EXTENSIONS
from attar.data.table import ImageTable
from attar.device import pick_device
from attar.errors import UsageError
from attar.files import atomic_path
from attar.members import is_url
from attar.store.config import EmbedConfig
from attar.store.embed import embed_images, embed_texts
from attar.store.store import Store
from attar.teachers.base import Teacher

log = logging.getLogger(__name__)

_IMAGES, _SENTENCES = 2048, 8192  # 64 MB of cosines at once


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What is said about the n images of a table, None for an image without a caption."""

    texts: tuple[str | None, ...]
    scores: tuple[float | None, ...] = ()
    """Cosine of image and caption under the teacher; empty when no teacher judged."""


def retrieve_captions(
    teacher: Teacher | None,
    table: ImageTable,
    sentences: Sequence[str],
    path: Path,
    config: EmbedConfig,
) -> Captions:
    """Give each image the sentence that the teacher finds nearest (largest cosine).

    Args:
        teacher: asked once for what the store lacks, or None when the store holds everything.
        table: n images; one that the teacher's preprocessing cannot read gets no caption.
        sentences: S candidates; of equally near ones the first is taken.
        path: the store.
        config: how the teacher is asked.

    Raises:
        AttarError: the store is another teacher's, or lacks texts while no teacher is given.
    """
    if teacher is not None:
        embed_images(teacher, table, path, config)
        embed_texts(teacher, sentences, path, config)
    store = Store.open(path)
    has_row = store.has_images(table.keys)
    places = np.flatnonzero(has_row)
    nearest, cosines = nearest_sentences(store, [table.keys[at] for at in places], sentences)
    texts: list[str | None] = [None] * len(table)
    scores: list[float | None] = [None] * len(table)
    for at, sentence, cosine in zip(places, nearest, cosines, strict=True):
        texts[at], scores[at] = sentences[sentence], float(cosine)
    if len(places) < len(table):
        log.warning("%d images have no embedding and no caption", len(table) - len(places))
    return Captions(texts=tuple(texts), scores=tuple(scores))


def nearest_sentences(
    store: Store, keys: Sequence[str], sentences: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each image its nearest sentence and their cosine, exactly, chunk by chunk.

    Args:
        store: holds every image and sentence; its rows are read from the disk as needed.
        keys: [n] sha256 of the images' bytes.
        sentences: S texts.

    Returns:
        [n] indices into `sentences` (the lowest among equals) and [n] cosines, computed in float32
        from the stored rows.
    """
    rows, device = store.image_rows(keys), pick_device()
    best = np.full(len(rows), -np.inf, np.float32)
    nearest = np.zeros(len(rows), np.int64)
    for start in range(0, len(sentences), _SENTENCES):
        part = _unit(store.text_features(sentences[start : start + _SENTENCES]), device)
        for at in range(0, len(rows), _IMAGES):
            chunk = slice(at, at + _IMAGES)
            images = _unit(store.image_features(rows[chunk]), device)
            values, found = (images @ part.T).max(dim=1)
            cosines = values.cpu().numpy()
            is_better = cosines > best[chunk]
            best[chunk] = np.where(is_better, cosines, best[chunk])
            nearest[chunk] = np.where(is_better, found.cpu().numpy() + start, nearest[chunk])
    return nearest, best


def _unit(rows: NDArray[Any], device: torch.device) -> Tensor:
    # A half-precision row is a unit vector only to three digits.
    return torch.nn.functional.normalize(
        torch.from_numpy(np.asarray(rows, np.float32)).to(device), dim=1
    )


def check_manifest_path(out: Path) -> None:
    """Refuse a name that no command would read as a manifest (UsageError)."""
    if out.suffix.lower() not in MANIFEST_EXTENSIONS:
        raise UsageError(f"--out {out} should end in {' or '.join(MANIFEST_EXTENSIONS)}")


def write_manifest(table: ImageTable, captions: Captions, out: Path) -> Path:
    """Write path, label, domain, split, caption (and caption_score) as CSV or Parquet.

    Images with several labels get a column labels ("a|b|c") instead of label.
    Paths below the manifest's folder are relative to it, so that both can be moved together; others
    are absolute. What an image lacks is an empty cell.
    """
    check_manifest_path(out)
    folder = out.parent.resolve()
    columns: dict[str, Sequence[object]] = {
        "path": [path if is_url(path) else _relative(Path(path), folder) for path in table.paths],
        **_labels(table),
        "domain": [table.domain_names[i] if i >= 0 else None for i in table.domains],
        "split": list(table.splits),
        "caption": list(captions.texts),
    }
    types = dict.fromkeys(columns, pa.string())
    if captions.scores:
        columns["caption_score"] = list(captions.scores)
        types["caption_score"] = pa.float32()
    with atomic_path(out) as temporary:
        if out.suffix.lower() == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                for row in zip(*columns.values(), strict=True):
                    writer.writerow([f"{v:.4f}" if isinstance(v, float) else v for v in row])
        else:
            arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
            pq.write_table(pa.table(arrays), temporary)
    return out


def _labels(table: ImageTable) -> dict[str, Sequence[object]]:
    names = table.class_names
    if table.label_sets:
        return {"labels": ["|".join(names[i] for i in several) for several in table.label_sets]}
    return {"label": [names[i] if i >= 0 else None for i in table.labels]}


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
