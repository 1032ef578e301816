"""Which images each step trains on: a pure function of (seed, step, rank, world).

Nothing is remembered between steps, so a resumed run needs only the step number. Indices point
into the training images followed by the few-shot images.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from attar.data.shard_order import ShardShuffle, shard_starts
from attar.data.table import ImageTable
from attar.errors import UsageError, unknown_name


class Sampler(Protocol):
    """The order of the images."""

    def indices(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Return the image indices of one process's batch at `step` (from 0)."""
        ...

    def global_batch(self, world: int = 1) -> int:
        """Return the images in one step over all processes."""
        ...

    def steps_per_epoch(self, world: int = 1) -> int:
        """Return the steps that show each training image at least once on average."""
        ...


class _Shuffle:
    """An endless stream over `items`: one fresh permutation after another."""

    def __init__(self, items: Sequence[int], seed: int, stream: int) -> None:
        self._items = np.asarray(items, dtype=np.int64)
        self._seed = (stream, seed)
        self._cache: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def take(self, start: int, count: int) -> list[int]:
        """Return the items at positions start ... start + count - 1 of the stream."""
        taken: list[int] = []
        while len(taken) < count:
            epoch, offset = divmod(start + len(taken), len(self._items))
            taken += self._epoch(epoch)[offset : offset + count - len(taken)].tolist()
        return taken

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._cache:
            # A batch may reach from one epoch into the next, so two permutations are kept.
            self._cache = {e: p for e, p in self._cache.items() if e == epoch - 1}
            generator = np.random.default_rng((*self._seed, epoch))
            self._cache[epoch] = generator.permutation(self._items)
        return self._cache[epoch]


class UniformSampler:
    """Every image once an epoch, whatever the world size.

    The last batch of an epoch is filled from the next one, so every batch is full. The batches of
    all processes at one step are consecutive parts of one list.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._stream: _Shuffle | ShardShuffle = _Shuffle(range(count), seed, stream=0)
        self._batch_size = batch_size

    def indices(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Return `batch_size` indices, see `Sampler`."""
        _check_position(step, rank, world)
        start = (step * world + rank) * self._batch_size
        return self._stream.take(start, self._batch_size)

    def global_batch(self, world: int = 1) -> int:
        """Return batch_size x world."""
        return self._batch_size * world

    def steps_per_epoch(self, world: int = 1) -> int:
        """Return the steps that one pass over the images takes, rounded up."""
        return math.ceil(len(self._stream) / self.global_batch(world))


class ShardSampler(UniformSampler):
    """Every image once an epoch, shard by shard: images of one time lie near each other on disk.

    The shards are shuffled, and then the images inside windows of the list they make: what is read
    at any time lies in the few shards of one window, whatever the size of the data.
    """

    def __init__(self, starts: Sequence[int], count: int, batch_size: int, seed: int) -> None:
        self._stream = ShardShuffle(starts, count, seed)
        self._batch_size = batch_size


class PerDomainSampler:
    """`batch_size` images of each domain a step and process, as DomainBed trains.

    Each domain cycles through its own permutations, so a small domain is repeated more often.
    Images without a domain form one more group. The processes take disjoint parts of a step.
    """

    def __init__(self, domains: Sequence[int], batch_size: int, seed: int) -> None:
        present = sorted(set(domains))
        self._streams = [
            _Shuffle([i for i, d in enumerate(domains) if d == domain], seed, stream=2 + domain)
            for domain in present
        ]
        self._count = len(domains)
        self._batch_size = batch_size

    def indices(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Return `batch_size` indices of each domain, one domain after the other."""
        _check_position(step, rank, world)
        start = (step * world + rank) * self._batch_size
        return [i for stream in self._streams for i in stream.take(start, self._batch_size)]

    def global_batch(self, world: int = 1) -> int:
        """Return batch_size x domains x world."""
        return self._batch_size * len(self._streams) * world

    def steps_per_epoch(self, world: int = 1) -> int:
        """Return the steps after which as many images were shown as there are, rounded up."""
        return math.ceil(self._count / self.global_batch(world))


class HalfFewShotSampler:
    """At most half of each step few-shot images; all of them when they are no more than that.

    Li et al. (ICCV 2023): with F few-shot images and a global batch of G, every step takes
    min(F, G // 2) few-shot images and fills up with training images. Both cycle through their own
    permutations. Few-shot images come first and are dealt out evenly over the processes.
    """

    def __init__(self, count: int, few_shot: int, batch_size: int, seed: int) -> None:
        self._train = _Shuffle(range(count), seed, stream=0)
        self._few_shot = _Shuffle(range(count, count + few_shot), seed, stream=1)
        self._batch_size = batch_size

    def indices(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """Return `batch_size` indices, see `Sampler`."""
        _check_position(step, rank, world)
        shots = self._shots(world)
        rest = self.global_batch(world) - shots
        everything = self._few_shot.take(step * shots, shots) + self._train.take(step * rest, rest)
        return everything[rank::world]

    def global_batch(self, world: int = 1) -> int:
        """Return batch_size x world."""
        return self._batch_size * world

    def steps_per_epoch(self, world: int = 1) -> int:
        """Return the steps that one pass over the training images takes, rounded up."""
        return math.ceil(len(self._train) / (self.global_batch(world) - self._shots(world)))

    def _shots(self, world: int) -> int:
        return min(len(self._few_shot), self.global_batch(world) // 2)


def _make_uniform(
    table: ImageTable, few_shot: ImageTable | None, batch_size: int, seed: int
) -> Sampler:
    return UniformSampler(len(table) + len(few_shot or ()), batch_size, seed)


def _make_shards(
    table: ImageTable, few_shot: ImageTable | None, batch_size: int, seed: int
) -> Sampler:
    paths = table.paths + (few_shot.paths if few_shot is not None else ())
    return ShardSampler(shard_starts(paths), len(paths), batch_size, seed)


def _make_per_domain(
    table: ImageTable, few_shot: ImageTable | None, batch_size: int, seed: int
) -> Sampler:
    domains = table.domains + (few_shot.domains if few_shot is not None else ())
    if all(domain < 0 for domain in domains):
        raise UsageError(
            "sampler 'per-domain' needs domains and the images have none: give data as "
            "domain/class/image or a manifest with a domain column, or use 'uniform'"
        )
    return PerDomainSampler(domains, batch_size, seed)


def _make_half_few_shot(
    table: ImageTable, few_shot: ImageTable | None, batch_size: int, seed: int
) -> Sampler:
    if not few_shot:
        raise UsageError(
            "sampler 'half-few-shot' needs few-shot images: name them in a manifest's split "
            "column, or use 'uniform'"
        )
    if batch_size < 2:
        raise UsageError("sampler 'half-few-shot' needs a batch size of at least 2")
    return HalfFewShotSampler(len(table), len(few_shot), batch_size, seed)


SAMPLERS: dict[str, Callable[[ImageTable, ImageTable | None, int, int], Sampler]] = {
    "uniform": _make_uniform,
    "shards": _make_shards,
    "per-domain": _make_per_domain,
    "half-few-shot": _make_half_few_shot,
}
"""Makers of samplers by the name used in configs."""


def make_sampler(
    name: str, table: ImageTable, few_shot: ImageTable | None, batch_size: int, seed: int
) -> Sampler:
    """Return the sampler of that name over `table` followed by `few_shot`.

    Args:
        name: a key of `SAMPLERS`.
        table: the training images.
        few_shot: the few-shot images, if any.
        batch_size: images a step and process; for "per-domain", of each domain.
        seed: 0 or more.

    Raises:
        UsageError: an unknown name, no training images, a batch size below 1, a negative seed,
            or data that lacks what the sampler needs.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} is too small: give at least 1")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative: give 0 or more")
    if not len(table):
        raise UsageError("there are no training images: the splits left none")
    return SAMPLERS[name](table, few_shot, batch_size, seed)


def _check_position(step: int, rank: int, world: int) -> None:
    if step < 0 or not 0 <= rank < world:
        raise ValueError(f"no batch at step {step}, rank {rank} of {world}")
