"""What a selection leaves behind: the chosen sentences, a table of all, and a page to look at."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attar.files import atomic_folder, atomic_path, write_text
from attar.language.selection import (
    CHOSEN,
    FILLED,
    LOWER,
    REASONS,
    REDUNDANT,
    Selection,
    unit,
)
from attar.language.selection_config import SelectionConfig
from attar.language.selection_search import nearest_cosines
from attar.store.store import Store
from attar.store.writer import StoreWriter

TEXTS, TABLE, PAGE, VIEW = "texts.jsonl", "selection.parquet", "page.md", "store"
EXAMPLES = 15
_ROWS = 65_536

SCHEMA = pa.schema(
    [
        ("sentence", pa.string()),
        ("score", pa.float32()),
        ("cosine", pa.float32()),
        ("image", pa.string()),
        ("chosen", pa.bool_()),
        ("reason", pa.dictionary(pa.int8(), pa.string())),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Mean over the images of the greatest cosine with any sentence of a set."""

    chosen: float
    random: float
    """Of as many sentences drawn from the whole store."""


def write_selection(
    selection: Selection, texts: Store, images: Store, config: SelectionConfig, out: Path
) -> Coverage:
    """Write what was chosen to OUT: TEXTS, VIEW, TABLE and PAGE; return what the page says."""
    out.mkdir(parents=True, exist_ok=True)
    names = images.image_names(selection.anchors.rows)
    _write_texts(texts, selection.chosen, out / TEXTS)
    _write_view(texts, selection.chosen, out / VIEW)
    _write_table(selection, texts, names, out / TABLE)
    covered = _coverage(selection, texts, config)
    write_text(out / PAGE, _page(selection, texts, names, config, covered))
    return covered


def _write_texts(texts: Store, chosen: NDArray[np.int64], file: Path) -> None:
    """Write the chosen sentences in their order, one JSON string a line."""
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for start in range(0, len(chosen), _ROWS):
            for sentence in texts.captions(chosen[start : start + _ROWS]):
                stream.write(json.dumps(sentence, ensure_ascii=False) + "\n")


def _write_view(texts: Store, chosen: NDArray[np.int64], folder: Path) -> None:
    """Write a store of the chosen sentences alone, which needs the large one no more."""
    teacher, dtype = texts.info.teacher, texts.info.dtype
    with (
        atomic_folder(folder) as temporary,
        StoreWriter.open(temporary, teacher, dtype, shard_rows=_ROWS) as writer,
    ):
        for start in range(0, len(chosen), _ROWS):
            rows = chosen[start : start + _ROWS]
            writer.add_texts(texts.captions(rows), texts.features_of_texts(rows))


def _write_table(selection: Selection, texts: Store, names: Sequence[str], file: Path) -> None:
    """Write one row a sentence, in the order of the store."""
    every, best = np.array(names, dtype=object), selection.nearest[:, 0]
    offsets = selection.anchors.offsets
    with atomic_path(file) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for start in range(0, len(best), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(best)), dtype=np.int64)
            fates, nearest = selection.fates[rows], best[rows]
            columns = [
                pa.array(texts.captions(rows), pa.string()),
                pa.array(selection.scores[rows]),
                pa.array(selection.values[rows, 0] + offsets[nearest]),
                pa.array(every[nearest], pa.string()),
                pa.array(_is_in(fates)),
                pa.DictionaryArray.from_arrays(pa.array(fates.astype(np.int8)), list(REASONS)),
            ]
            writer.write_table(pa.table(columns, schema=SCHEMA))


def _is_in(fates: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (fates == CHOSEN) | (fates == FILLED)


def _coverage(selection: Selection, texts: Store, config: SelectionConfig) -> Coverage:
    drawn = np.random.default_rng((config.seed, 2)).choice(
        len(selection.fates), len(selection.chosen), replace=False
    )
    return Coverage(
        chosen=_covered(selection, texts, selection.chosen),
        random=_covered(selection, texts, drawn),
    )


def _covered(selection: Selection, texts: Store, rows: NDArray[np.int64]) -> float:
    images = selection.anchors.features
    best = np.full(len(images), -np.inf, np.float32)
    for start in range(0, len(rows), _ROWS):
        some = unit(texts.features_of_texts(np.sort(rows)[start : start + _ROWS]))
        np.maximum(best, nearest_cosines(images, some), out=best)
    return float(best.mean())


def _page(
    selection: Selection,
    texts: Store,
    names: Sequence[str],
    config: SelectionConfig,
    covered: Coverage,
) -> str:
    """Return a page in Markdown with numbers, and examples drawn by the seed."""
    fates = selection.fates
    counts = {reason: int((fates == code).sum()) for code, reason in enumerate(REASONS)}
    images = len(set(selection.nearest[_is_in(fates), 0].tolist()))
    lines = [
        "# Selected sentences",
        "",
        f"{len(selection.chosen):,} of {len(fates):,} sentences, for {len(names):,} images "
        f"(teacher {texts.info.teacher.name}, seed {config.seed}). The algorithm is attar's own; "
        "that of DIME-FM was never released.",
        "",
        f"- Nearest to some chosen sentence: {images:,} images.",
        f"- Coverage, the mean over images of the greatest cosine with a sentence: "
        f"{covered.chosen:.3f} chosen, {covered.random:.3f} for as many drawn at random.",
        *(f"- {reason}: {count:,}" for reason, count in counts.items() if count),
        "",
    ]
    rng = np.random.default_rng((config.seed, 3))
    lowest = np.argsort(selection.scores, kind="stable")[:EXAMPLES]
    for title, rows in (
        ("Chosen first", selection.chosen[:EXAMPLES]),
        ("Chosen, drawn at random", _draw(rng, selection.chosen)),
        ("Refused: a lower score, drawn at random", _draw(rng, np.flatnonzero(fates == LOWER))),
        ("Refused: says what another says", _draw(rng, np.flatnonzero(fates == REDUNDANT))),
        ("The lowest scores of all", lowest),
    ):
        lines += _section(title, rows, selection, texts, names)
    return "\n".join(lines)


def _draw(rng: np.random.Generator, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rng.choice(rows, min(EXAMPLES, len(rows)), replace=False)


def _section(
    title: str,
    rows: NDArray[np.int64],
    selection: Selection,
    texts: Store,
    names: Sequence[str],
) -> list[str]:
    if not len(rows):
        return []
    lines = [f"## {title}", "", "| score | sentence | nearest image |", "|---:|---|---|"]
    for row, sentence in zip(rows.tolist(), texts.captions(rows), strict=True):
        image = names[int(selection.nearest[row, 0])]
        lines.append(f"| {selection.scores[row]:.3f} | {_cell(sentence)} | {_cell(image)} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    short = " ".join(text.split())
    return (short if len(short) <= 200 else short[:199] + "…").replace("|", "\\|")
