"""The text stream: every entry once a pass, any rank or world, any moment; one text of several."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import DIM

from attar.errors import UsageError
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.teachers.base import TeacherInfo
from attar.training.streams import TextStream, beginnings, permuted

INFO = TeacherInfo(name="random", identity="0" * 64, dim=DIM, logit_scale=100.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("texts") / "store"
    with StoreWriter.open(path, INFO, shard_rows=20) as writer:
        features = np.random.default_rng(0).standard_normal((53, DIM))
        writer.add_texts([f"text {i}" for i in range(53)], features)
    return Store.open(path)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation(count: int) -> None:
    places = np.arange(count, dtype=np.int64)
    found = permuted(places, count, seed=3)
    np.testing.assert_array_equal(np.sort(found), places)
    # One place alone goes where it goes among all.
    np.testing.assert_array_equal(permuted(places[-1:], count, seed=3), found[-1:])
    if count > 10:
        assert (found != permuted(places, count, seed=4)).any()
        assert 0.3 < (np.diff(found) > 0).mean() < 0.7


def test_it_shuffles_evenly() -> None:
    """Over many seeds each place goes everywhere as often."""
    seen = np.zeros((6, 6))
    for seed in range(600):
        seen[np.arange(6), permuted(np.arange(6, dtype=np.int64), 6, seed)] += 1
    assert seen.min() > 60
    assert seen.max() < 145


@pytest.mark.parametrize("batch_size", [4, 53, 120])
def test_every_text_once_a_pass_and_then_anew(store: Store, batch_size: int) -> None:
    stream = TextStream(store, batch_size=batch_size)
    steps = -(-3 * 53 // batch_size)
    visits = np.concatenate([stream.rows(step) for step in range(steps)])
    passes = [visits[at : at + 53] for at in (0, 53, 106)]
    for one in passes:
        assert sorted(one.tolist()) == list(range(53))
    assert passes[0].tolist() != passes[1].tolist() != passes[2].tolist()


def test_ranks_take_consecutive_parts_of_one_list(store: Store) -> None:
    alone = TextStream(store, batch_size=12, seed=5)
    together = [TextStream(store, batch_size=4, seed=5, rank=r, world=3) for r in range(3)]
    for step in (0, 4, 9):
        parts = [stream.rows(step) for stream in together]
        np.testing.assert_array_equal(np.concatenate(parts), alone.rows(step))
        joined = torch.cat([stream(step) for stream in together])
        torch.testing.assert_close(joined, alone(step), rtol=0, atol=0)


def test_a_step_gives_what_the_teacher_said(store: Store) -> None:
    stream = TextStream(store, batch_size=7, seed=1)
    features = stream(3)
    assert features.dtype == torch.float32
    texts = store.captions(stream.rows(3))
    np.testing.assert_array_equal(features.numpy(), store.text_features(texts).astype(np.float32))
    assert not np.array_equal(stream.rows(3), TextStream(store, batch_size=7, seed=2).rows(3))


def test_one_text_of_an_entry_at_each_visit(store: Store) -> None:
    rows = np.arange(40, 50, dtype=np.int64)
    starts = beginnings(np.array([1, 6, 3]))
    np.testing.assert_array_equal(starts, [0, 1, 7])
    stream = TextStream(store, rows, starts, batch_size=3)
    assert len(stream) == 3
    seen: Counter[int] = Counter()
    for step in range(300):
        taken = sorted(stream.rows(step).tolist())
        assert [int(np.searchsorted([40, 41, 47], row, "right")) for row in taken] == [1, 2, 3]
        seen.update(taken)
    assert seen[40] == 300
    assert all(30 < seen[row] < 75 for row in range(41, 47))
    assert all(70 < seen[row] < 130 for row in range(47, 50))


def test_a_store_without_texts_is_refused(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path / "store", INFO):
        pass
    with pytest.raises(UsageError, match="no sentence"):
        TextStream(Store.open(tmp_path / "store"), batch_size=4)
