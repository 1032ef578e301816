import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.dead_workers import Killer
from tests.store.samples import FAST, table_of

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.data.views import RecordedView
from attar.errors import AttarError, UsageError
from attar.store.config import EmbedConfig
from attar.store.embed import SET_ASIDE, embed_images, embed_texts
from attar.store.estimate import estimate_embed, seconds_per_image
from attar.store.store import Store
from attar.teachers.base import Teacher


class Counting:
    """A teacher that counts what it is asked."""

    def __init__(self, teacher: Teacher) -> None:
        self.info = teacher.info
        self.towers = teacher.towers
        self.prepare = teacher.prepare
        self.images: list[int] = []
        self.texts: list[str] = []
        self._teacher = teacher

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        self.images.append(len(pixels))
        return self._teacher.encode_images(pixels)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        self.texts += texts
        return self._teacher.encode_texts(texts)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def assert_same(read: np.ndarray, expected: np.ndarray) -> None:
    """Each row is the teacher's answer to its own image, not to another one."""
    assert cosines(read, expected).min() >= 0.9999
    rows = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    distances = np.linalg.norm(read.astype(np.float64)[:, None] - rows[None], axis=2)
    assert np.array_equal(distances.argmin(axis=1), np.arange(len(rows)))


def asked_by_hand(teacher: Teacher, images: list[Image.Image]) -> np.ndarray:
    pixels = torch.stack([teacher.prepare(image) for image in images])
    return teacher.encode_images(pixels).numpy()


@pytest.mark.parametrize("workers", [0, 2])
def test_stored_features_are_the_teachers(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable], workers: int
) -> None:
    table = make_table(21)
    path = embed_images(teacher, table, tmp_path / "store", replace(FAST, workers=workers))
    store = Store.open(path)
    expected = asked_by_hand(teacher, [read_image(file) for file in table.paths])
    read = store.image_features(store.image_rows(table.keys))
    assert_same(read, expected)
    np.testing.assert_allclose(np.linalg.norm(read.astype(np.float64), axis=1), 1, atol=1e-3)
    assert store.info.teacher == teacher.info
    names = [name for batch in store.iterate_images(5) for name in batch.names]
    assert names == list(table.names)


def test_texts_are_asked_once_and_read_back(tmp_path: Path, teacher: Teacher) -> None:
    texts = [f"a photo of thing {i}" for i in range(9)]
    counting = Counting(teacher)
    embed_texts(counting, [*texts, texts[0]], tmp_path, FAST)
    embed_texts(counting, ["new", *texts], tmp_path, FAST)
    assert counting.texts == [*texts, "new"]
    read = Store.open(tmp_path).text_features(texts)
    assert_same(read, teacher.encode_texts(texts).numpy())


def test_only_what_is_missing_is_asked_and_duplicates_once(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(10)
    root = tmp_path / "images"
    shutil.copy(table.paths[3], root / "copy.png")
    table = table_of(root, [*table.names, "copy.png"])
    counting = Counting(teacher)
    embed_images(counting, table.select(range(4)), tmp_path / "store", FAST)
    assert sum(counting.images) == 4
    embed_images(counting, table, tmp_path / "store", FAST)
    assert sum(counting.images) == 10
    embed_images(counting, table, tmp_path / "store", FAST)
    assert sum(counting.images) == 10
    store = Store.open(tmp_path / "store")
    assert store.num_images == 10
    rows = store.image_rows(table.keys)
    assert rows[3] == rows[10]


def test_recorded_views_can_be_seen_again_exactly(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(7)
    config = replace(FAST, views=2, view_size=40, seed=3)
    counting = Counting(teacher)
    store = Store.open(embed_images(counting, table, tmp_path / "store", config))
    assert store.views_of() == ("clean", "domainbed-40-s3-0", "domainbed-40-s3-1")
    assert (sum(counting.images), max(counting.images)) == (21, 3)
    for index in range(2):
        view = config.view_name(index)
        rows = store.image_rows(table.keys, view)
        recorded = store.recorded_view(rows)
        assert recorded == [
            RecordedView.draw("domainbed", key, index, seed=3) for key in table.keys
        ]
        seen = [
            one.apply(read_image(file), store.info.views[view]["size"])
            for one, file in zip(recorded, table.paths, strict=True)
        ]
        expected = asked_by_hand(teacher, seen)
        assert_same(store.image_features(rows), expected)
    assert store.recorded_view(store.image_rows(table.keys)) == [None] * 7


def test_views_are_added_to_a_store_without_asking_the_clean_images_again(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(6)
    counting = Counting(teacher)
    embed_images(counting, table, tmp_path / "store", FAST)
    embed_images(counting, table, tmp_path / "store", replace(FAST, views=1))
    assert sum(counting.images) == 12
    embed_images(counting, table, tmp_path / "store", replace(FAST, views=3))
    assert sum(counting.images) == 24
    with pytest.raises(UsageError, match="unknown augmentation 'domainbeds': did you mean"):
        embed_images(
            counting, table, tmp_path / "store", replace(FAST, views=1, view_recipe="domainbeds")
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named_and_the_run_goes_on(
    tmp_path: Path,
    teacher: Teacher,
    make_table: Callable[..., ImageTable],
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    table = make_table(12)
    good = Path(table.paths[5]).read_bytes()
    Path(table.paths[5]).write_bytes(good[: len(good) // 2])
    Path(table.paths[8]).unlink()
    store_path = tmp_path / "store"
    embed_images(teacher, table, store_path, replace(FAST, workers=workers))
    entries = json.loads((store_path / SET_ASIDE).read_text())
    assert [entry["path"] for entry in entries] == [table.paths[5], table.paths[8]]
    assert all(entry["reason"] for entry in entries)
    shown = capsys.readouterr().err
    assert "2 images could not be read" in shown
    assert table.paths[8] in shown
    held = Store.open(store_path).has_images(table.keys)
    assert np.flatnonzero(~held).tolist() == [5, 8]
    Path(table.paths[5]).write_bytes(good)
    embed_images(teacher, table.select([5]), store_path, FAST)
    entries = json.loads((store_path / SET_ASIDE).read_text())
    assert [entry["path"] for entry in entries] == [table.paths[8]]


def test_nothing_readable_is_an_error(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(3)
    for file in table.paths:
        Path(file).write_bytes(b"no image")
    with pytest.raises(AttarError, match=r"none of the 3 images could be read; first: .*000\.png"):
        embed_images(teacher, table, tmp_path / "store", FAST)


def test_an_embedding_that_is_not_finite_names_the_image(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(12)

    class Overflowing(Counting):
        def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
            features = super().encode_images(pixels).clone()
            if len(self.images) == 3:
                features[1, 0] = torch.inf
            return features

    with pytest.raises(AttarError, match=f"not finite for image '{table.names[9]}'"):
        embed_images(Overflowing(teacher), table, tmp_path / "store", FAST)
    assert Store.open(tmp_path / "store").has_images(table.keys[:8]).all()


def test_the_estimate_counts_what_would_be_asked(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(10)
    config = replace(FAST, views=2)
    texts = ["a", "b", "a"]
    before = estimate_embed(teacher.info, table, None, config, texts)
    assert (before.missing_images, before.missing_texts) == (30, 2)
    store_path = embed_images(teacher, table.select(range(4)), tmp_path / "store", FAST)
    embed_texts(teacher, ["a"], store_path, FAST)
    after = estimate_embed(teacher.info, table, Store.open(store_path), config, texts)
    assert (after.missing_images, after.missing_texts) == (26, 1)
    assert before.bytes > after.bytes > 26 * teacher.info.dim * 2
    assert after.seconds(0.5) == 13
    other = replace(teacher.info, identity="00" * 32)
    with pytest.raises(UsageError, match="holds embeddings of teacher"):
        estimate_embed(other, table, Store.open(store_path), config)
    assert seconds_per_image(teacher, FAST) > 0


def test_the_estimate_of_bytes_is_near_the_truth(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(60)
    config = replace(FAST, views=1, shard_rows=1000, view_size=32)
    estimate = estimate_embed(teacher.info, table, None, config)
    path = embed_images(teacher, table, tmp_path / "store", config)
    info = Store.open(path).info
    actual = sum(s.embeddings_bytes + s.metadata_bytes for s in info.image_shards)
    assert 0.5 < estimate.bytes / actual < 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 0, "batch_size is 0; give 1 or more"),
        ("workers", -1, "workers is -1"),
        ("views", -2, "views is -2"),
        ("view_size", 3, "view_size is 3"),
        ("dtype", "int8", "'int8'; choose one of float16, float32"),
    ],
)
def test_a_wrong_config_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EmbedConfig(**{field: value})


class OneOfTwo:
    """A process of two that run one after the other: neither has to wait."""

    world = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.is_main = rank == 0

    def wait(self) -> None:
        pass


def test_a_share_of_broken_images_alone_ends_no_command(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table, store = make_table(6), tmp_path / "store"
    for path in table.paths[3:]:
        Path(path).write_bytes(b"good when it was listed")
    for rank in (1, 0):
        embed_images(teacher, table, store, FAST, OneOfTwo(rank))
    assert Store.open(store).has_images(table.keys).tolist() == [True] * 3 + [False] * 3
    for path in table.paths[:3]:
        Path(path).write_bytes(b"good when it was listed")
    embed_images(teacher, table, tmp_path / "other", FAST, OneOfTwo(1))
    with pytest.raises(AttarError, match="none of the 6 images could be read"):
        embed_images(teacher, table, tmp_path / "other", FAST, OneOfTwo(0))


def test_a_worker_that_dies_is_named_and_what_was_embedded_is_kept(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    killer = Killer()

    class Struck(Counting):
        def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
            if len(self.images) == 2:
                killer.strike()
            return super().encode_images(pixels)

    table, path = make_table(40), tmp_path / "store"
    with pytest.raises(AttarError, match=r"a process that reads images died .*fewer workers"):
        embed_images(Struck(teacher), table, path, replace(FAST, workers=1))
    again = Counting(teacher)
    embed_images(again, table, path, FAST)
    assert sum(again.images) == 40 - FAST.shard_rows
