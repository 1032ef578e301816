"""Training images that stand in tars: the same batches as from a folder, exact at every step."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.data.tars import picture, write_tars

from attar.data.sources import read_sources
from attar.data.splits import SourceSplits
from attar.data.table import ImageTable
from attar.errors import AttarError
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.teachers.base import TeacherInfo
from attar.training.config import TrainingConfig
from attar.training.feed import Feed, Place
from attar.types import Batch

DIM, TARS, EACH = 8, 5, 7
COUNT = TARS * EACH
CPU = torch.device("cpu")


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    write_tars(tmp_path / "tars", tars=TARS, each=EACH)
    return read_sources([tmp_path / "tars"])


@pytest.fixture
def store(table: ImageTable, tmp_path: Path) -> Path:
    info = TeacherInfo(name="random", identity="0" * 64, dim=DIM, logit_scale=100.0)
    features = np.random.default_rng(0).standard_normal((COUNT, DIM))
    with StoreWriter.open(tmp_path / "store", info, shard_rows=4) as writer:
        for start in range(0, COUNT, 3):
            part = slice(start, start + 3)
            keys, names = table.keys[part], table.names[part]
            writer.add_images(keys, names, "clean", features[part])
    return tmp_path / "store"


def make_feed(table: ImageTable, store: Path, **options) -> Feed:
    nothing = table.select([])
    config = TrainingConfig(**{"batch_size": 4, "workers": 0, "sampler": "shards", **options})
    source = SourceSplits(train=table, val=nothing, few_shot=nothing)
    return Feed(source, Store.open(store), config, 32)


def draw(feed: Feed, steps: range, rank: int = 0, world: int = 1) -> list[Batch]:
    return list(feed.batches(steps, "clean", Place(CPU, rank, world)))


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (0, 2), (0, 3)])
def test_every_sample_comes_once_an_epoch(
    table: ImageTable, store: Path, workers: int, world: int
) -> None:
    steps = range(2 * COUNT // (4 * world) + 1)
    ranks = [draw(make_feed(table, store, workers=workers), steps, r, world) for r in range(world)]
    shown = [key for step in zip(*ranks, strict=True) for batch in step for key in batch.keys]
    for epoch in (0, 1):
        assert Counter(shown[epoch * COUNT : (epoch + 1) * COUNT]) == Counter(table.keys)


def test_it_goes_on_in_the_middle_of_a_tar(table: ImageTable, store: Path) -> None:
    whole = draw(make_feed(table, store), range(20))
    resumed = draw(make_feed(table, store, workers=2), range(9, 20))
    for one, other in zip(whole[9:], resumed, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.image_features, other.image_features)


@pytest.mark.parametrize("sampler", ["uniform", "shards"])
def test_tars_give_what_a_folder_of_their_files_gives(
    table: ImageTable, store: Path, tmp_path: Path, sampler: str
) -> None:
    files = [tmp_path / "files" / name for name in table.names]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    folder = replace(table, paths=tuple(str(file) for file in files))
    both = zip(
        draw(make_feed(table, store, sampler=sampler), range(10)),
        draw(make_feed(folder, store, sampler=sampler), range(10)),
        strict=True,
    )
    for one, other in both:
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_embeddings_lie_in_the_order_of_the_tars(table: ImageTable, store: Path) -> None:
    assert Store.open(store).image_rows(table.keys).tolist() == list(range(COUNT))


def test_a_tar_that_was_cut_stops_training_and_is_named(
    table: ImageTable, store: Path, tmp_path: Path
) -> None:
    tar = tmp_path / "tars" / "data-003.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(AttarError, match=r"data-003\.tar\[\d+:\d+\].* the tar ends before byte"):
        draw(make_feed(table, store), range(9))


def test_an_embedding_shard_of_the_wrong_length_is_refused(table: ImageTable, store: Path) -> None:
    shard = store / "img_emb" / "img_emb_2.npy"
    rows = np.load(shard)
    np.save(shard, rows[:-1])
    with pytest.raises(AttarError, match=r"img_emb_2\.npy is damaged .*store verify"):
        make_feed(table, store)
