"""Streams of another kind than images, and of another length: sentences, by what was said of them.

A stream is a pure function of (seed, step, rank, world) like the images' batches, so a resumed run
needs only the step. It keeps no permutation: where an entry stands in a pass is computed.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.errors import UsageError
from attar.store.store import Store
from attar.training.seeds import derive_seed

_ROUNDS = 6


class TextStream:
    """The teacher's text features of N entries a step, shuffled; it begins anew when it ends.

    An entry is one sentence, or a list of which each visit takes one at random: the captions of an
    image, or the prompts of a class. The last batch of a pass is filled from the next one. The
    batches of all processes at one step are consecutive parts of one list.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64] | None = None,
        starts: NDArray[np.int64] | None = None,
        *,
        batch_size: int,
        first: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Prepare the stream; no row is read yet.

        Args:
            store: holds the texts.
            rows: the store's rows of all entries' texts, one entry after the other; every text of
                the store when not given, which takes no memory.
            starts: [entries] where each entry begins in `rows`; each row is an entry by default.
            batch_size: N, entries a step and process.
            first: without `rows`, only so many of the store's texts, the oldest.
            seed: decides the order and the choice within entries.
            rank: this process among those that train together.
            world: how many they are.

        Raises:
            UsageError: there is no text.
        """
        self._store, self._rows, self._starts = store, rows, starts
        every = store.num_texts if first is None else first
        self._texts = every if rows is None else len(rows)
        self._count = self._texts if starts is None else len(starts)
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world = rank, world
        if not self._count:
            raise UsageError(f"{store.path} holds no sentence to learn from: give --texts FILE")

    def __len__(self) -> int:
        """Return the number of entries."""
        return self._count

    def __call__(self, step: int) -> Tensor:
        """Return the unit text features [N, D], float32, of this process's part of a step."""
        features = self._store.features_of_texts(self.rows(step))
        return torch.from_numpy(np.asarray(features, dtype=np.float32))

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the store's rows [N] of this process's part of a step."""
        first = (step * self._world + self._rank) * self._batch_size
        visits = np.arange(first, first + self._batch_size, dtype=np.int64)
        passes, places = np.divmod(visits, self._count)
        entries = np.empty_like(visits)
        for number in np.unique(passes):
            here = passes == number
            seed = derive_seed("text", self._seed, int(number))
            entries[here] = permuted(places[here], self._count, seed)
        texts = self._texts_of(entries, visits)
        return texts if self._rows is None else self._rows[texts]

    def _texts_of(self, entries: NDArray[np.int64], visits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which text [N] each visit takes of its entry."""
        if self._starts is None:
            return entries
        begin = self._starts[entries]
        last = entries + 1 == self._count
        end = np.where(last, self._texts, self._starts[np.where(last, 0, entries + 1)])
        drawn = _mixed(visits.astype(np.uint64), derive_seed("choice", self._seed))
        chosen: NDArray[np.int64] = begin + (drawn % (end - begin).astype(np.uint64)).astype(
            np.int64
        )
        return chosen


def beginnings(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each entry begins, [entries], from how many texts each has."""
    return np.cumsum(lengths) - lengths


def permuted(places: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Return where a permutation of 0 ... count - 1 puts the places [n]; nothing of it is stored.

    A Feistel network permutes the numbers of an even count of bits; a place that leaves the range
    is sent through again until it returns (at most four times on average).
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = [derive_seed(seed, number) for number in range(_ROUNDS)]
    found = places.astype(np.uint64)
    outside = np.ones(len(found), bool)
    while outside.any():
        left, right = found[outside] >> np.uint64(half), found[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right, key) & mask)
        found[outside] = (left << np.uint64(half)) | right
        outside = found >= np.uint64(count)
    return found.astype(np.int64)


def _mixed(numbers: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Return well-spread 64-bit numbers (the finaliser of splitmix64), keyed."""
    x = numbers + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
