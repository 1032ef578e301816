"""Choose the sentences of a large store that images can see and that together cover the images.

The algorithm is attar's own; DIME-FM's (Sun et al., ICCV 2023) was never released.

1. Images: all of them, or a seeded draw, stand for the corpus.
2. Its m nearest images are kept with each sentence: those with the greatest cosine less what an
   image gives any sentence (its mean cosine with a sample of them), so that an image near to
   everything attracts no more than others.
   Score: the sentence's mean cosine with these images. One image is near by chance, several are
   not.
3. Pool: the best P · N sentences by score compete.
4. Rounds: in each, every image proposes the best sentence left among those it is near to; a
   sentence that says the same as one chosen for a near image is refused, and the image proposes
   again. So all images have the same quota, and the better sentence goes first.
5. Where images run out of sentences before N are chosen, the best of the rest fill up.

Step 2 reads the store once, part by part; a part that is done is kept, and a killed selection goes
on with the next. In memory stand 8 m bytes a sentence and D numbers an image.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.errors import UsageError
from attar.files import atomic_path, check_writable, read_json, sha256_text, write_json
from attar.language.selection_config import SelectionConfig
from attar.language.selection_search import Search, make_search, search_kind
from attar.store.layout import CLEAN, check_teacher
from attar.store.progress import Meter
from attar.store.store import Store

Floats = NDArray[np.float32]
LOWER, CHOSEN, FILLED, REDUNDANT = range(4)
REASONS = ("lower score", "chosen", "filled up", "says what another says")
"""What became of a sentence, by code."""

_PART, _BLOCK = 262_144, 8192
_SAMPLE = 20_000
_VALUE = "cosine less the image's mean cosine with sentences"
"""What parts hold, part of their plan: those of another version are not used."""
_WIDTH = 64
"""Numbers of a sentence that are compared for saying the same: a random projection."""


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """The A images that stand for the corpus."""

    rows: NDArray[np.int64]
    """[A] rows of the store of images."""
    features: Floats
    """[A, D] unit rows."""
    offsets: Floats
    """[A] mean cosines with a sample of sentences."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What became of the n sentences of a store."""

    anchors: Anchors
    values: Floats
    """[n, m] cosines less offsets with the nearest images, descending."""
    nearest: NDArray[np.int32]
    """[n, m] the images, as numbers of anchors."""
    chosen: NDArray[np.int64]
    """[N] rows of sentences in the order in which they were chosen."""
    fates: NDArray[np.uint8]
    """[n] codes into REASONS."""

    scores: Floats
    """[n] each sentence's mean cosine with its nearest images."""


def select(texts: Store, images: Store, config: SelectionConfig, work: Path) -> Selection:
    """Choose sentences of `texts` for the images of `images`.

    Args:
        texts: a store with sentences.
        images: a store with images, of the same teacher; may be the same.
        config: how many, and how.
        work: folder for the parts that are done; it may be deleted afterwards.

    Raises:
        UsageError: different teachers, no image, or fewer sentences than asked.
    """
    check_teacher(images.path, images.info.teacher, texts.info.teacher)
    if texts.num_texts < config.count:
        raise UsageError(
            f"{texts.path} holds {texts.num_texts:,} sentences, {config.count:,} were asked for; "
            "give a smaller --count"
        )
    neighbours = config.neighbours
    check_writable(work, 2 * 4 * neighbours * texts.num_texts)
    anchors = _draw_anchors(texts, images, config)
    neighbours = min(neighbours, len(anchors.rows))
    kind = search_kind(config.search, texts.num_texts)
    search = make_search(anchors.features, anchors.offsets, neighbours, kind)
    plan = _plan(texts, images, replace(config, search=kind))
    values, nearest = _compare(texts, search, neighbours, work, plan)
    scores = _scores(values, nearest, anchors.offsets)
    said = _projection(texts, config.seed)
    chosen, fates = choose(scores, (values, nearest), said, config)
    return Selection(
        anchors=anchors,
        values=values,
        nearest=nearest,
        scores=scores,
        chosen=chosen,
        fates=fates,
    )


def _scores(values: Floats, nearest: NDArray[np.int32], offsets: Floats) -> Floats:
    """Return [n] mean cosines; an approximate search may have found fewer images than m, or none.

    In parts: the whole of it would be held once more.
    """
    scores = np.full(len(values), -np.inf, np.float32)
    for start in range(0, len(values), _PART):
        some = slice(start, start + _PART)
        found = np.isfinite(values[some])
        cosines = np.where(found, values[some] + offsets[nearest[some]], 0)
        counts = found.sum(axis=1)
        scores[some][counts > 0] = (cosines.sum(axis=1) / np.maximum(counts, 1))[counts > 0]
    return scores


def _draw_anchors(texts: Store, images: Store, config: SelectionConfig) -> Anchors:
    rows = _clean_rows(images)
    if not len(rows):
        raise UsageError(
            f"{images.path} holds no image to choose sentences for; give --images STORE, or fill "
            "it with attar embed --data"
        )
    rng = np.random.default_rng((config.seed, 0))
    if len(rows) > config.anchors:
        rows = np.sort(rng.choice(rows, config.anchors, replace=False))
    features = unit(images.image_features(rows))
    sample = np.arange(texts.num_texts, dtype=np.int64)
    if len(sample) > _SAMPLE:
        sample = np.sort(rng.choice(texts.num_texts, _SAMPLE, replace=False))
    offsets = features @ unit(texts.features_of_texts(sample)).mean(axis=0)
    return Anchors(rows=rows, features=features, offsets=offsets)


def _clean_rows(images: Store) -> NDArray[np.int64]:
    if images.views_of() == (CLEAN,):
        return np.arange(images.num_images, dtype=np.int64)
    found = [
        part.rows[np.array([view == CLEAN for view in part.views])]
        for part in images.iterate_images(_BLOCK)
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


def unit(rows: NDArray[Any]) -> Floats:
    """Return rows in float32 at unit length; a stored half is so to three digits only."""
    full = np.asarray(rows, np.float32)
    return full / np.linalg.norm(full, axis=1, keepdims=True)


# Comparing every sentence with the images, part by part


def _plan(texts: Store, images: Store, config: SelectionConfig) -> str:
    """Return what identifies the comparison: parts of another one are not used."""
    shards = [s.embeddings_sha256 for s in texts.info.text_shards]
    shards += [s.embeddings_sha256 for s in images.info.image_shards]
    how = {k: v for k, v in asdict(config).items() if k not in ("count", "pool", "redundant")}
    return sha256_text(repr((_VALUE, shards, sorted(how.items()), _PART, _BLOCK)))


def _compare(
    texts: Store, search: Search, neighbours: int, work: Path, plan: str
) -> tuple[Floats, NDArray[np.int32]]:
    count = texts.num_texts
    values = np.empty((count, neighbours), np.float32)
    nearest = np.empty((count, neighbours), np.int32)
    _keep_only(work, plan)
    with Meter("sentences", count, "sentences") as meter:
        for start in range(0, count, _PART):
            end = min(start + _PART, count)
            file = work / f"part-{start // _PART:05}.npz"
            if not file.is_file():
                _compare_part(texts, search, values[start:end], nearest[start:end], start)
                with atomic_path(file) as temporary, temporary.open("wb") as stream:
                    np.savez(stream, values=values[start:end], nearest=nearest[start:end])
            else:
                with np.load(file) as known:
                    values[start:end], nearest[start:end] = known["values"], known["nearest"]
            meter.advance(end - start)
    return values, nearest


def _compare_part(
    texts: Store, search: Search, values: Floats, nearest: NDArray[np.int32], first: int
) -> None:
    """Fill the rows of one part."""
    for row, features in texts.scan_texts(_BLOCK, first):
        at = row - first
        if at >= len(values):
            return
        some = features[: len(values) - at]
        values[at : at + len(some)], nearest[at : at + len(some)] = search(unit(some))


def _keep_only(work: Path, plan: str) -> None:
    """Remove the parts of another comparison."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "plan.json"
    if file.is_file() and read_json(file) == plan:
        return
    for part in work.glob("part-*.npz"):
        part.unlink()
    write_json(file, plan)


# Choosing

Said = Callable[[NDArray[np.int64]], Floats]
"""From rows of sentences to what they say, [n, W] unit rows."""
Near = tuple[Floats, NDArray[np.int32]]
"""What a search returns: values [n, m] and the images."""


def _projection(texts: Store, seed: int) -> Said:
    """Return what reads sentences in few numbers: cosines near 1 survive a random projection."""
    dim = texts.info.teacher.dim
    matrix = np.random.default_rng((seed, 1)).standard_normal((dim, _WIDTH), np.float32)

    def said(rows: NDArray[np.int64]) -> Floats:
        features = unit(texts.features_of_texts(rows))
        return features if dim <= _WIDTH else unit(features @ matrix)

    return said


def choose(
    scores: Floats, near: Near, said: Said, config: SelectionConfig
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the chosen sentences [N] in their order, and what became of every sentence [n].

    Args:
        scores: [n] of each sentence.
        near: values [n, m] of each sentence with its nearest images, descending, and these images.
        said: see `Said`.
        config: N, the pool and what is redundant.
    """
    values, nearest = near
    by_score = np.argsort(-scores, kind="stable")
    pool = np.sort(by_score[: int(np.ceil(config.pool * config.count))])
    fates = np.full(len(values), LOWER, np.uint8)
    chosen = _rounds(_Proposals(values, nearest, pool), nearest, said, fates, config)
    missing = config.count - len(chosen)
    if missing:
        rest = np.concatenate([by_score[fates[by_score] == fate] for fate in (LOWER, REDUNDANT)])
        chosen = np.concatenate([chosen, rest[:missing]])
        fates[rest[:missing]] = FILLED
    return chosen, fates


class _Proposals:
    """Each image's sentences of the pool, the best first."""

    def __init__(self, values: Floats, nearest: NDArray[np.int32], pool: NDArray[np.int64]) -> None:
        kept = np.isfinite(values[pool])
        sentences = np.repeat(pool, kept.sum(axis=1))
        images, worth = nearest[pool][kept], values[pool][kept]
        order = np.lexsort((sentences, -worth, images))
        self._sentences, self._worth = sentences[order], worth[order]
        _, starts = np.unique(images[order], return_index=True)
        self._next = starts.astype(np.int64)
        self._ends = np.append(starts[1:], len(order)).astype(np.int64)

    @property
    def images(self) -> NDArray[np.int64]:
        """Numbers of the images that have any sentence."""
        return np.arange(len(self._next))

    def best_left(
        self, images: NDArray[np.int64], fates: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return those of the images that have a sentence left, and it; the best of all first."""
        while True:
            open_ = images[self._next[images] < self._ends[images]]
            gone = open_[fates[self._sentences[self._next[open_]]] != LOWER]
            if not len(gone):
                break
            self._next[gone] += 1
        at = self._next[open_]
        order = np.lexsort((self._sentences[at], -self._worth[at]))
        return open_[order], self._sentences[at][order]


def _rounds(
    proposals: _Proposals,
    nearest: NDArray[np.int32],
    said: Said,
    fates: NDArray[np.uint8],
    config: SelectionConfig,
) -> NDArray[np.int64]:
    """Let every image propose, round after round, and write down the fates.

    An image whose proposal was refused, or went to another, proposes again in the same round.
    """
    chosen: list[int] = []
    width = said(np.zeros(1, np.int64)).shape[1]
    words = np.empty((config.count, width), np.float16)
    of_image: defaultdict[int, list[int]] = defaultdict(list)
    waiting = proposals.images
    while len(chosen) < config.count:
        images, proposed = proposals.best_left(waiting, fates)
        if not len(images):
            if len(waiting) == len(proposals.images):
                break
            waiting = proposals.images
            continue
        again = []
        for image, sentence, own in zip(
            images.tolist(), proposed.tolist(), said(proposed), strict=True
        ):
            if len(chosen) == config.count:
                break
            if fates[sentence] != LOWER:
                again.append(image)
                continue
            near_images = nearest[sentence].tolist()
            near = [number for one in dict.fromkeys(near_images) for number in of_image[one]]
            if near and float((words[near].astype(np.float32) @ own).max()) >= config.redundant:
                fates[sentence] = REDUNDANT
                again.append(image)
                continue
            fates[sentence] = CHOSEN
            words[len(chosen)] = own
            of_image[near_images[0]].append(len(chosen))
            chosen.append(sentence)
        waiting = np.array(again, np.int64) if again else proposals.images
    return np.array(chosen, np.int64)
