"""`--method.views` that the teacher will not have answered about are refused before it is asked."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_runs import CLASSES, distil, write_pictures

from attar import pipeline
from attar.data.splits import SourceSplits
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.run import DataConfig
from attar.stages import recorded_views
from attar.stages.images import read_image_table
from attar.store.config import EmbedConfig


@dataclass(frozen=True)
class Options:
    views: str


def source_of(images: ImageTable) -> SourceSplits:
    nothing = images.select([])
    return SourceSplits(train=images, val=nothing, few_shot=nothing)


def check(views: str, images: ImageTable, store: Path, *, recorded: int = 0, asks: bool) -> None:
    config = EmbedConfig(views=recorded)
    recorded_views.check(Options(views), source_of(images), store, config, has_teacher=asks)


@pytest.fixture(scope="module")
def images(root: Path) -> ImageTable:
    return ImageTable.load(distil(root, "for-views") / "images.parquet")


def test_views_that_will_be_recorded_are_as_good_as_there(images, tmp_path) -> None:
    check("clean", images, tmp_path, asks=False)
    check("same", images, tmp_path, recorded=2, asks=True)
    check("online", images, tmp_path, asks=True)


def test_what_nobody_can_answer_is_refused_with_the_way_out(images, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"none: give --embed\.views 4"):
        check("same", images, tmp_path, asks=True)
    with pytest.raises(UsageError, match=r"none: give --teacher and --embed\.views 4"):
        check("same", images, tmp_path, recorded=4, asks=False)
    with pytest.raises(UsageError, match="online asks the teacher"):
        check("online", images, tmp_path, asks=False)


def test_a_store_serves_whose_views_hold_every_training_image(
    root: Path, images: ImageTable, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "seen", CLASSES, 2, seed=77)
    store = pipeline.embed(
        DataConfig(data=(folder,)),
        f"local-dir:{root / 'teacher'}",
        tmp_path / "store",
        EmbedConfig(views=1, workers=0),
    )
    held = read_image_table(DataConfig(data=(folder,)), None, tmp_path / "notes")
    check("same", held, store, asks=False)
    with pytest.raises(UsageError, match="needs a recorded view of all"):
        check("same", images, store, asks=True)
