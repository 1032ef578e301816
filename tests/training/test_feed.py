"""Batches are pure functions of seed, step, rank and world, and pair images with features."""

import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import DIM, SIZE, make_feed, make_images, read_table
from tests.dead_workers import Killer
from torch import Tensor

from attar.data.splits import SourceSplits
from attar.data.transforms import RecordedView, pil_to_tensor
from attar.errors import AttarError, UsageError
from attar.store.config import EmbedConfig
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.training.config import TrainingConfig
from attar.training.feed import Feed, Place
from attar.types import Batch

CPU = torch.device("cpu")
ALONE = Place(CPU)


def config(**options) -> TrainingConfig:
    return TrainingConfig(**{"batch_size": 4, "workers": 0, **options})


def batches(feed: Feed, steps: range, place: Place = ALONE, views: str = "clean") -> list[Batch]:
    return list(feed.batches(steps, views, place))


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.image_features, other.image_features)


@pytest.fixture
def with_views(tmp_path: Path) -> Path:
    """Images whose store also holds two recorded views of each, their features but a number."""
    folder = tmp_path / "images"
    make_images(folder, count=8)
    table = read_table(folder)
    info = Store.open(folder / "store").info.teacher
    with StoreWriter.open(folder / "store", info) as writer:
        config = EmbedConfig(views=2)
        for number, (name, definition) in enumerate(config.view_definitions().items()):
            views = [RecordedView.draw("domainbed", key, number, 0) for key in table.keys]
            features = np.eye(DIM)[np.arange(8) + 8 * number]
            writer.add_view(name, definition)
            params = [view.to_json() for view in views]
            writer.add_images(table.keys, table.names, name, features, params)
    return folder


def test_reading_workers_leave_an_interrupt_to_the_main_process(images: Path) -> None:
    feed = make_feed(images, config(workers=2))
    others = set(multiprocessing.active_children())
    reading = feed.batches(range(12), "clean", ALONE)
    read = [next(reading), next(reading)]  # one of each worker: both have begun
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    for worker in workers:  # a terminal tells them all
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    read += list(reading)
    assert len(read) == 12
    for one, other in zip(read, batches(make_feed(images, config()), range(12)), strict=True):
        assert_equal(one, other)


def test_a_batch_pairs_images_with_labels_domains_and_features(images: Path) -> None:
    table, store = read_table(images), Store.open(images / "store")
    feed = make_feed(images, config(augmentation="none"))
    for batch in batches(feed, range(6)):
        rows = [table.keys.index(key) for key in batch.keys]
        assert batch.labels.tolist() == [table.labels[row] for row in rows]
        assert batch.domains.tolist() == [table.domains[row] for row in rows]
        stored = store.image_features(store.image_rows(batch.keys))
        assert torch.equal(batch.image_features, torch.from_numpy(stored).float())
        assert batch.image_features.shape == (4, DIM)
        assert batch.images.shape == (4, 3, SIZE, SIZE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= batch.images.min() < batch.images.max() <= 1
        for row, pixels in zip(rows, batch.images, strict=True):
            with Image.open(table.paths[row]) as file:
                mean = torch.tensor(np.asarray(file) / 255).mean((0, 1))
            assert torch.allclose(pixels.mean((1, 2)).double(), mean, atol=0.02)


def test_one_epoch_shows_every_image_once(images: Path) -> None:
    feed = make_feed(images, config())
    keys = [key for batch in batches(feed, range(6)) for key in batch.keys]
    assert sorted(keys) == sorted(read_table(images).keys)


def test_a_step_is_the_same_from_wherever_and_with_whatever_workers(images: Path) -> None:
    whole = batches(make_feed(images, config()), range(6))
    for resumed in (
        batches(make_feed(images, config()), range(3, 6)),
        batches(make_feed(images, config(workers=2)), range(3, 6)),
    ):
        for one, other in zip(whole[3:], resumed, strict=True):
            assert_equal(one, other)
    reseeded = batches(make_feed(images, config(seed=1)), range(1))[0]
    assert reseeded.keys != whole[0].keys


def test_augmentation_differs_by_step_and_leaves_the_global_generator_alone(images: Path) -> None:
    feed = make_feed(images, config(batch_size=24))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second = batches(feed, range(2))
    assert torch.equal(torch.rand(3), expected)
    order = [second.keys.index(key) for key in first.keys]
    assert not torch.equal(first.images, second.images[order])
    assert torch.equal(first.image_features, second.image_features[order])


def test_two_ranks_share_the_joined_batch(images: Path) -> None:
    joined = batches(make_feed(images, config(batch_size=8)), range(2))
    feed = make_feed(images, config(batch_size=4))
    parts = [batches(feed, range(2), Place(CPU, rank, 2)) for rank in range(2)]
    for step, whole in enumerate(joined):
        left, right = parts[0][step], parts[1][step]
        assert whole.keys == left.keys + right.keys
        assert torch.equal(whole.images, torch.cat([left.images, right.images]))
    assert feed.global_batch(2) == 8


def test_same_shows_the_student_what_the_teacher_saw(with_views: Path) -> None:
    table = read_table(with_views)
    feed = make_feed(with_views, config(workers=2))
    chosen = set()
    for batch in batches(feed, range(6), views="same"):
        for key, pixels, feature in zip(
            batch.keys, batch.images, batch.image_features, strict=True
        ):
            row = table.keys.index(key)
            number, image = divmod(int(feature.argmax()), 8)
            assert image == row
            view = RecordedView.draw("domainbed", key, number, 0)
            with Image.open(table.paths[row]) as file:
                seen = pil_to_tensor(view.apply(file.convert("RGB"), SIZE))
            assert torch.equal(pixels, seen.float() / 255)
            chosen.add(number)
    assert chosen == {0, 1}


def test_same_without_recorded_views_is_refused(images: Path) -> None:
    with pytest.raises(AttarError, match=r"the store has none.*attar embed --views 4"):
        make_feed(images, config()).check("same")


def test_online_asks_about_the_students_own_view(images: Path) -> None:
    asked: list[Tensor] = []

    def online(pixels: Tensor) -> Tensor:
        asked.append(pixels)
        return pixels.float().mean((2, 3))

    feed = make_feed(images, config(), online=online)
    batch = batches(feed, range(1), views="online")[0]
    assert asked[0].dtype == torch.uint8
    assert torch.equal(batch.images, asked[0].float() / 255)
    assert torch.equal(batch.image_features, asked[0].float().mean((2, 3)))
    with pytest.raises(UsageError, match="views 'online' need a teacher"):
        make_feed(images, config()).check("online")


def test_without_a_store_there_are_no_features(images: Path) -> None:
    table = read_table(images)
    nothing = table.select([])
    feed = Feed(SourceSplits(train=table, val=nothing, few_shot=nothing), None, config(), SIZE)
    feed.check("clean")
    assert batches(feed, range(1))[0].image_features is None


def test_missing_embeddings_are_refused_before_training(images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_images(other, count=2)
    source = SourceSplits(
        train=read_table(images),
        val=read_table(images).select([]),
        few_shot=read_table(images).select([]),
    )
    feed = Feed(source, Store.open(other / "store"), config(), SIZE)
    with pytest.raises(AttarError, match="22 of 24 images have no 'clean' embedding"):
        feed.check("clean")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_gone_is_named(tmp_path: Path, workers: int) -> None:
    make_images(tmp_path / "images", count=8)
    feed = make_feed(tmp_path / "images", config(workers=workers))
    (tmp_path / "images/003.jpg").unlink()
    with pytest.raises(AttarError, match=r"^step \d: .*003\.jpg cannot be read.*$") as caught:
        batches(feed, range(2))
    assert "\n" not in str(caught.value)


def test_few_shot_images_take_half_of_each_batch(images: Path) -> None:
    table = read_table(images)
    few = table.select(range(20, 24))
    source = SourceSplits(train=table.select(range(20)), val=table.select([]), few_shot=few)
    feed = Feed(source, None, config(sampler="half-few-shot"), SIZE)
    assert len(feed) == 24
    for batch in batches(feed, range(4)):
        assert sum(key in few.keys for key in batch.keys) == 2
        rows = [table.keys.index(key) for key in batch.keys]
        assert batch.labels.tolist() == [table.labels[row] for row in rows]


def test_other_streams_advance_by_step(images: Path) -> None:
    feed = make_feed(images, config(), streams={"text": lambda step: torch.full((7, DIM), step)})
    resumed = batches(feed, range(4, 6))
    assert [float(batch.streams["text"][0, 0]) for batch in resumed] == [4, 5]
    assert resumed[0].streams["text"].shape == (7, DIM)


def test_the_budget_counts_steps_or_epochs(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert make_feed(images, config(steps=7)).total_steps() == 7
    assert make_feed(images, config(epochs=1.5)).total_steps() == 9
    assert make_feed(images, config(epochs=0.9, batch_size=5)).total_steps() == 5
    assert make_feed(images, config(epochs=2)).total_steps(world=2) == 6
    assert make_feed(images, config(sampler="per-domain", epochs=1)).total_steps() == 3
    monkeypatch.setenv("WORLD_SIZE", "3")  # as torchrun tells each process
    assert make_feed(images, config(epochs=2)).total_steps() == 4


def test_an_epoch_of_few_shot_learning_is_a_pass_over_the_training_images(images: Path) -> None:
    table = read_table(images)
    train, few = table.select(range(20)), table.select(range(20, 24))
    source = SourceSplits(train=train, val=table.select([]), few_shot=few)
    config = TrainingConfig(epochs=3, batch_size=8, sampler="half-few-shot", workers=0)
    # 4 of 8 images a step are few-shot ones, so 20 training images take 5 steps.
    assert Feed(source, None, config, SIZE).total_steps() == 15


def test_a_worker_that_dies_while_reading_is_named(images: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)  # nobody writes to it: the worker waits in reading until it is killed
    table = replace(read_table(images), paths=(str(pipe),) * len(read_table(images)))
    nothing = table.select([])
    source = SourceSplits(train=table, val=nothing, few_shot=nothing)
    feed = Feed(source, Store.open(images / "store"), config(workers=1), SIZE)
    threading.Timer(0.5, Killer().kill).start()
    with pytest.raises(AttarError, match=r"a process that reads images died .*last checkpoint"):
        next(feed.batches(range(2), "clean", ALONE))
