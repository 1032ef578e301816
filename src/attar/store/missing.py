"""Which texts of a long list a store lacks: 16 bytes for each that is new, 24 for each it has."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from attar.files import sha256_text
from attar.store.shards import pack_keys
from attar.store.store import Store

_PART = 8192
Item = TypeVar("Item")


def missing_texts(store: Store | None, texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield, part by part, the texts that the store lacks, each once, in their order.

    `store` is None before the first run. The texts are read once, as they are needed.
    """
    fresh = _Fresh()
    for number, part in enumerate(in_parts(texts, _PART)):
        if store is not None and number == 1:
            store.index_texts()  # it pays from the second look-up on
        unique = list(dict.fromkeys(part))
        if store is not None:
            held = store.has_texts(unique)
            unique = [text for text, is_held in zip(unique, held, strict=True) if not is_held]
        is_new = fresh.add([sha256_text(text) for text in unique])
        new = [text for text, so in zip(unique, is_new, strict=True) if so]
        if new:
            yield new


def count_missing_texts(store: Store | None, texts: Iterable[str]) -> int:
    """Return how many different texts the store lacks."""
    return sum(len(part) for part in missing_texts(store, texts))


def in_parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


class _Fresh:
    """Keys met so far, in sorted runs of which each is more than twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.bytes_]] = []

    def add(self, keys: Sequence[str]) -> NDArray[np.bool_]:
        """Add different hex sha256 [n]; return [n] which of them are new."""
        if not keys:
            return np.zeros(0, bool)
        packed = pack_keys(keys)
        is_new = np.ones(len(packed), bool)
        for run in self._runs:
            at = np.searchsorted(run, packed).clip(max=len(run) - 1)
            is_new &= run[at] != packed
        if is_new.any():
            added = np.sort(packed[is_new])
            while self._runs and len(self._runs[-1]) <= 2 * len(added):
                added = np.sort(np.concatenate([self._runs.pop(), added]))
            self._runs.append(added)
        return is_new
