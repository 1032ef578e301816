"""The order in which images are visited shard by shard: shuffled, and computed where it is asked.

The shards of an epoch are put in a random order, and the list of images that they make is shuffled
inside windows of a fixed length. Everything follows from (seed, epoch, window): the order takes
memory for one window and one number a shard, and can be entered at any place.
"""

import os
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

WINDOW = 16_384
"""Images that are shuffled among each other."""
_STREAM = 3
"""Keeps these random numbers apart from those of other orders with the same seed."""


def shard_starts(paths: Sequence[str]) -> list[int]:
    """Return the rows of a table where a shard begins: another tar, or another folder of files."""
    starts, row = [], 0
    for _, group in groupby(paths, _shard_of):
        starts.append(row)
        row += sum(1 for _ in group)
    return starts


def _shard_of(path: str) -> str:
    end = path.rfind(".tar[")
    return path.rpartition(os.sep)[0] if end < 0 else path[:end]


class ShardShuffle:
    """An endless stream over 0 ... count - 1: every number once an epoch."""

    def __init__(self, starts: Sequence[int], count: int, seed: int, window: int = WINDOW) -> None:
        """Prepare the stream; `starts` are the first numbers of the shards, ascending from 0."""
        self._starts = np.asarray(starts, dtype=np.int64)
        self._sizes = np.diff(self._starts, append=count)
        self._count = count
        self._seed = seed
        self._window = window
        self._shards: tuple[int, NDArray[np.int64]] = (-1, self._starts)
        self._images: tuple[tuple[int, int], NDArray[np.int64]] = ((-1, -1), self._starts)

    def __len__(self) -> int:
        return self._count

    def take(self, start: int, count: int) -> list[int]:
        """Return the items at positions start ... start + count - 1 of the stream."""
        taken: list[int] = []
        while len(taken) < count:
            epoch, place = divmod(start + len(taken), self._count)
            window, offset = divmod(place, self._window)
            taken += self._in_window(epoch, window)[offset : offset + count - len(taken)].tolist()
        return taken

    def _in_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Return the images of a window in the order in which they are visited."""
        if self._images[0] != (epoch, window):
            first = window * self._window
            places = np.arange(first, min(first + self._window, self._count))
            generator = np.random.default_rng((_STREAM, self._seed, epoch, 1 + window))
            images = generator.permutation(self._unshuffled(epoch, places))
            self._images = ((epoch, window), images)
        return self._images[1]

    def _unshuffled(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the images at some places of the list that the shuffled shards make."""
        order = self._order(epoch)
        ends = np.cumsum(self._sizes[order])
        shard = np.searchsorted(ends, places, side="right")
        inside = places - (ends[shard] - self._sizes[order[shard]])
        images: NDArray[np.int64] = self._starts[order[shard]] + inside
        return images

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._shards[0] != epoch:
            generator = np.random.default_rng((_STREAM, self._seed, epoch, 0))
            self._shards = (epoch, generator.permutation(len(self._starts)))
        return self._shards[1]
