"""From splits and store to batches.

1. The sampler names the images of a step.
2. Workers decode and augment them: uint8 tensors, random numbers from (seed, step, position).
3. The training process adds what the teacher said, read from the store by row.
4. On the device the images become floats in [0, 1].

So a batch is a pure function of (seed, step, rank, world), whatever the number of workers.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from attar.data.images import read_image
from attar.data.samplers import make_sampler
from attar.data.splits import SourceSplits
from attar.data.table import concatenate
from attar.data.transforms import Transform, train_transform
from attar.data.views import RecordedView
from attar.device import ignore_interrupts, naming_dead_workers
from attar.errors import AttarError, UsageError
from attar.methods.base import Views
from attar.store.store import Store
from attar.training.config import TrainingConfig
from attar.training.seeds import derive_seed
from attar.types import Batch

IF_A_WORKER_DIES = (
    "run the same command again and training goes on from its last checkpoint; if memory ran out, "
    "with fewer --training.workers"
)
_PREFETCHED_BATCHES = 2


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that train together."""

    device: torch.device
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class _Item:
    """One image to read, complete in itself: a worker knows nothing else of the run."""

    index: int
    seed: int
    view: tuple[str, str, int, int] | None = None
    """What `RecordedView.draw` takes, of the view that the teacher saw."""


@dataclass(frozen=True)
class _Plan:
    """What is known of a step's batch before its images are read."""

    step: int
    indices: list[int]
    rows: NDArray[np.int64] | None
    """[B] rows of the store with the teacher's features, when they are wanted."""


class _Images(Dataset[Tensor | str]):
    """Decodes and augments; a file that cannot be read comes back as the message."""

    def __init__(self, paths: Sequence[str], transform: Transform, image_size: int) -> None:
        self._paths = paths
        self._transform = transform
        self._image_size = image_size

    def __getitem__(self, item: _Item) -> Tensor | str:
        try:
            image = read_image(self._paths[item.index])
        except AttarError as error:
            return str(error)
        if item.view is not None:
            return pil_to_tensor(RecordedView.draw(*item.view).apply(image, self._image_size))
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(item.seed)
        try:
            return self._transform(image)
        finally:
            torch.set_rng_state(before)


def _stack(images: list[Tensor | str]) -> Tensor | str:
    """Stack the images of a batch, or return the message of the first one that failed."""
    failed = next((image for image in images if isinstance(image, str)), None)
    return failed or torch.stack([image for image in images if isinstance(image, Tensor)])


class Feed:
    """The training images of a run with all that is known of them."""

    def __init__(
        self,
        source: SourceSplits,
        store: Store | None,
        config: TrainingConfig,
        image_size: int,
        *,
        online: Callable[[Tensor], Tensor] | None = None,
        streams: Mapping[str, Callable[[int], Tensor]] | None = None,
        captions: bool = False,
    ) -> None:
        """Prepare the feed; no image is read yet.

        Args:
            source: train and few-shot images; validation images are not touched.
            store: what the teacher said, or None for methods without a teacher.
            config: sampler, batch size, augmentation, workers and seed.
            image_size: side of the student's images in pixels.
            online: asks the teacher about uint8 images [B, 3, H, W] (on the CPU) and returns
                [B, D]; needed by phases whose views are "online".
            streams: other named data; each maps a step to its tensor and is a pure function.
            captions: also give the teacher's features of the images' captions, from the store.

        Raises:
            UsageError: the data lacks what the sampler needs.
        """
        few_shot = source.few_shot if len(source.few_shot) else None
        self._table = source.train if few_shot is None else concatenate([source.train, few_shot])
        self._store = store
        self._config = config
        self._image_size = image_size
        self._online = online
        self._streams = dict(streams or {})
        self._sampler = make_sampler(
            config.sampler, source.train, few_shot, config.batch_size, config.seed
        )
        self._labels = torch.tensor(self._table.labels, dtype=torch.int64)
        self._domains = torch.tensor(self._table.domains, dtype=torch.int64)
        self._has_captions = any(caption is not None for caption in self._table.captions)
        self._embed_captions = captions and store is not None

    def __len__(self) -> int:
        """Return the number of training images, few-shot ones included."""
        return len(self._table)

    def global_batch(self, world: int = 1) -> int:
        """Return the images of one step over all processes."""
        return self._sampler.global_batch(world)

    def steps_per_epoch(self, world: int = 1) -> int:
        """Return the steps that show each training image about once."""
        return self._sampler.steps_per_epoch(world)

    def total_steps(self, world: int | None = None) -> int:
        """Return the configured budget in optimiser steps, see `TrainingConfig.total_steps`.

        By default for as many processes as `torchrun` or `accelerate launch` started.
        """
        world = world or int(os.environ.get("WORLD_SIZE", "1"))
        config = self._config
        if config.steps is None and config.sampler == "half-few-shot":
            # Its epoch is one pass over the training images alone, as Li et al. count it.
            return config.total_steps(self._sampler.steps_per_epoch(world), 1)
        return config.total_steps(len(self), self.global_batch(world))

    def paths(self, step: int, place: Place) -> list[str]:
        """Return the files of a step's batch."""
        indices = self._sampler.indices(step, place.rank, place.world)
        return [self._table.paths[i] for i in indices]

    def check(self, views: Views) -> None:
        """Refuse a phase whose teacher features are not to be had, before it begins.

        Raises:
            AttarError: embeddings or recorded views are missing; the message says how to make them.
        """
        if views == "online":
            if self._online is None:
                raise UsageError("views 'online' need a teacher to ask; give --teacher")
        elif views == "same":
            _ = self._recorded
        elif self._store is not None:
            _ = self._clean_rows

    def batches(
        self, steps: range, views: Views, place: Place, *, teacher: bool = True
    ) -> Iterator[Batch]:
        """Yield the batch of each step in `steps`, on the device.

        `teacher=False` leaves the teacher's features out.

        Raises:
            AttarError: a file that can no longer be read, an embedding that the store lacks, or a
                worker died.
        """
        plans: deque[_Plan] = deque()
        order = self._plan(steps, views if teacher else None, place, plans)
        with naming_dead_workers(IF_A_WORKER_DIES):
            for read in self._loader(order, place, self._config.workers):
                plan, features = plans.popleft(), None
                images = self._whole(plan, read)
                if plan.rows is not None and self._store is not None:
                    features = torch.from_numpy(self._store.image_features(plan.rows)).float()
                elif teacher and views == "online" and self._online is not None:
                    features = self._online(images)
                yield self._batch(plan, images, features, place.device)

    def first_batch(self, place: Place) -> Batch:
        """Return the first step's batch, read in this process, without the teacher's features."""
        plans: deque[_Plan] = deque()
        order = self._plan(range(1), None, place, plans)
        images = next(iter(self._loader(order, place, workers=0)))
        return self._batch(plans[0], self._whole(plans[0], images), None, place.device)

    def images(self, count: int, place: Place) -> Iterator[Tensor]:
        """Yield the images [B, 3, H, W] in [0, 1] of the first `count` steps."""
        for batch in self.batches(range(count), "clean", place, teacher=False):
            yield batch.images

    @staticmethod
    def _whole(plan: _Plan, images: Tensor | str) -> Tensor:
        if isinstance(images, str):
            raise AttarError(f"step {plan.step + 1}: {images}; it could be read before training")
        return images

    def _loader(self, order: Iterator[list[_Item]], place: Place, workers: int) -> DataLoader[Any]:
        """Return the reader of `order`; each worker process computes on one thread."""
        transform = train_transform(self._config.augmentation, self._image_size)
        return DataLoader(
            _Images(self._table.paths, transform, self._image_size),
            batch_sampler=order,
            collate_fn=_stack,
            num_workers=workers,
            worker_init_fn=ignore_interrupts if workers else None,
            prefetch_factor=_PREFETCHED_BATCHES if workers else None,
            pin_memory=place.device.type == "cuda",
            # Its own generator: opening a loader must not move the model's random numbers.
            generator=torch.Generator(),
        )

    def _plan(
        self, steps: range, views: Views | None, place: Place, plans: deque[_Plan]
    ) -> Iterator[list[_Item]]:
        """Yield the items of each step, and put the rest of what is known of it on `plans`.

        The loader runs ahead of training, and returns batches in this order.
        """
        for step in steps:
            indices = self._sampler.indices(step, place.rank, place.world)
            first = place.rank * len(indices)
            own = not self._config.shared_augmentation
            seeds = [
                derive_seed(self._config.seed, step, first + own * i) for i in range(len(indices))
            ]
            drawn: Sequence[tuple[str, str, int, int] | None] = [None] * len(indices)
            rows = None
            if views == "same" and self._store is not None:
                of_view, definitions = self._recorded
                choice = [seed % len(of_view) for seed in seeds]
                rows = of_view[choice, indices]
                drawn = [
                    (recipe, self._table.keys[i], number, seed)
                    for i, (recipe, number, seed) in zip(
                        indices, (definitions[view] for view in choice), strict=True
                    )
                ]
            elif views == "clean" and self._store is not None:
                rows = self._clean_rows[indices]
            plans.append(_Plan(step, indices, rows))
            yield [_Item(*item) for item in zip(indices, seeds, drawn, strict=True)]

    def _batch(
        self, plan: _Plan, images: Tensor, features: Tensor | None, device: torch.device
    ) -> Batch:
        """Put a batch on the device; images cross as bytes and become floats there."""
        indices, table = plan.indices, self._table
        batch = Batch(
            images=images,
            keys=tuple(table.keys[i] for i in indices),
            image_features=features,
            labels=self._labels_of(indices),
            domains=self._domains[indices],
            captions=tuple(table.captions[i] for i in indices) if self._has_captions else None,
            caption_features=self._caption_features(indices) if self._embed_captions else None,
            streams={name: stream(plan.step) for name, stream in self._streams.items()},
        ).to(device)
        pixels = batch.images.contiguous(memory_format=torch.channels_last)
        return replace(batch, images=pixels.float().div_(255))

    def _caption_features(self, indices: Sequence[int]) -> Tensor:
        """Return [B, D]: the teacher's features of the captions, zeros where there is none."""
        assert self._store is not None
        rows = self._caption_rows[indices]
        known = self._store.features_of_texts(rows[rows >= 0])
        features = torch.zeros(len(rows), self._store.info.teacher.dim)
        features[torch.from_numpy(rows >= 0)] = torch.from_numpy(known).float()
        return features

    def _labels_of(self, indices: list[int]) -> Tensor:
        """Return labels [B], or multi-hot [B, C] for images with several labels."""
        if self._table.has_label_sets:
            return torch.from_numpy(self._table.multi_hot(indices))
        return self._labels[indices]

    @cached_property
    def _caption_rows(self) -> NDArray[np.int64]:
        """[n] the store's row of each image's caption, -1 where it has none."""
        assert self._store is not None
        rows = np.full(len(self), -1, np.int64)
        there = [at for at, caption in enumerate(self._table.captions) if caption]
        rows[there] = self._store.text_rows([self._table.captions[at] or "" for at in there])
        return rows

    @cached_property
    def _clean_rows(self) -> NDArray[np.int64]:
        """[n] the store's row of each image."""
        assert self._store is not None
        return self._store.image_rows(self._table.keys)

    @cached_property
    def _recorded(self) -> tuple[NDArray[np.int64], list[tuple[str, int, int]]]:
        """The recorded views that cover all images: V of them.

        First [V, n], the store's row of each image in each view; then each view's recipe, number
        and seed. A view is drawn again from these, which a worker does: reading at random what the
        store recorded would decode a column of a whole shard for a single row of it.
        """
        keys, store = self._table.keys, self._store
        views = () if store is None else store.views_with(keys)
        if store is None or not views:
            raise AttarError(
                f"views 'same' need recorded views of all {len(keys):,} training images and the "
                "store has none; make them with: attar embed --views 4"
            )
        rows = np.stack([store.image_rows(keys, view) for view in views])
        definitions = []
        for view, recorded in zip(views, store.recorded_view(rows[:, 0]), strict=True):
            told = store.info.views[view] or {}
            definition = (str(told["recipe"]), int(told["index"]), int(told["seed"]))
            recipe, number, seed = definition
            if recorded != RecordedView.draw(recipe, keys[0], number, seed):
                raise AttarError(
                    f"view {view!r} of {store.path} is not what is drawn today from the same "
                    "numbers, so the student would not see what the teacher saw; embed the views "
                    "into another store: attar embed --views 4 --out STORE"
                )
            definitions.append(definition)
        return rows, definitions
