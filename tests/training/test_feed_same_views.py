"""Views "same" on a store that a teacher filled: what it recorded, drawn again and not read."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import SIZE, make_feed, make_images, read_table
from tests.doubles import make_openclip_folder

from attar.data.images import read_image
from attar.data.transforms import pil_to_tensor
from attar.errors import AttarError
from attar.store.config import EmbedConfig
from attar.store.embed import embed_images
from attar.store.layout import StoreInfo
from attar.store.store import Store
from attar.teachers.openclip import check_folder, load_openclip
from attar.training.config import TrainingConfig
from attar.training.feed import Place

COUNT = 12
VIEWS = EmbedConfig(batch_size=8, workers=0, views=3, view_size=40, seed=7, shard_rows=5)
TRAINING = TrainingConfig(batch_size=4, workers=0)
ALONE = Place(torch.device("cpu"))


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """Images, and a store in which a teacher saw three views of each, in many shards."""
    folder = make_openclip_folder(tmp_path / "teacher", embed_dim=32, image_size=32)
    make_images(tmp_path / "images", count=COUNT)
    store = tmp_path / "images" / "store"
    shutil.rmtree(store)  # the one of another, random teacher
    teacher = load_openclip(check_folder(str(folder)), torch.device("cpu"))
    embed_images(teacher, read_table(tmp_path / "images"), store, VIEWS)
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_student_sees_bit_for_bit_what_was_recorded(embedded: Path, workers: int) -> None:
    table, store = read_table(embedded), Store.open(embedded / "store")
    assert len(store.info.image_shards) > 3
    rows = np.stack([store.image_rows(table.keys, view) for view in VIEWS.view_definitions()])
    recorded = [store.recorded_view(of_view) for of_view in rows]
    features = [store.image_features(of_view) for of_view in rows]
    feed = make_feed(embedded, replace(TRAINING, workers=workers))
    feed.check("same")
    seen = set()
    for batch in feed.batches(range(12), "same", ALONE):
        assert batch.image_features is not None
        for key, pixels, said in zip(batch.keys, batch.images, batch.image_features, strict=True):
            image = table.keys.index(key)
            (view,) = (v for v in range(3) if np.array_equal(features[v][image], said.half()))
            of_teacher = recorded[view][image]
            assert of_teacher is not None
            wanted = pil_to_tensor(of_teacher.apply(read_image(table.paths[image]), SIZE))
            assert torch.equal(pixels, wanted.float() / 255)
            seen.add((view, image))
    assert len(seen) > 2 * COUNT


def test_no_metadata_is_read_while_training(embedded: Path) -> None:
    feed = make_feed(embedded, TRAINING)
    feed.check("same")
    for file in (embedded / "store").rglob("metadata_*.parquet"):
        file.unlink()
    assert len(list(feed.batches(range(6), "same", ALONE))) == 6


def test_views_that_are_drawn_otherwise_today_are_refused(embedded: Path) -> None:
    info = StoreInfo.read(embedded / "store")
    name = VIEWS.view_name(1)
    views = {**info.views, name: {**(info.views[name] or {}), "seed": 8}}
    replace(info, views=views).write(embedded / "store")
    with pytest.raises(AttarError, match=rf"view '{name}' of .* is not what is drawn today"):
        make_feed(embedded, TRAINING).check("same")
