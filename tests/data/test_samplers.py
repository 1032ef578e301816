from collections import Counter
from dataclasses import replace

import pytest

from attar.data.samplers import SAMPLERS, make_sampler
from attar.data.shard_order import ShardShuffle, shard_starts
from attar.data.table import ImageTable
from attar.errors import UsageError


def images(count, domains=None):
    return ImageTable(
        paths=tuple(map(str, range(count))),
        names=tuple(map(str, range(count))),
        keys=tuple(map(str, range(count))),
        labels=(-1,) * count,
        domains=tuple(domains) if domains else (-1,) * count,
        captions=(None,) * count,
        splits=(None,) * count,
        domain_names=("a", "b", "c"),
    )


TRAIN = images(50, [0] * 10 + [1] * 25 + [2] * 15)
SHOTS = images(7, [0] * 7)


def sampler(name, batch_size=8, seed=3):
    return make_sampler(name, TRAIN, SHOTS, batch_size, seed)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_restart_at_any_step_gives_the_same_batches(name):
    unbroken = sampler(name)
    batches = [unbroken.indices(step) for step in range(60)]
    for step in (59, 0, 31, 30):
        assert sampler(name).indices(step) == batches[step]
        assert unbroken.indices(step) == batches[step]
    assert sampler(name, seed=4).indices(0) != batches[0]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_batch_is_full_and_within_the_images(name, world):
    s = sampler(name)
    for step in range(30):
        ranks = [s.indices(step, rank, world) for rank in range(world)]
        assert len({len(batch) for batch in ranks}) == 1
        assert sum(map(len, ranks)) == s.global_batch(world)
        assert all(0 <= i < len(TRAIN) + len(SHOTS) for batch in ranks for i in batch)


@pytest.mark.parametrize("name", ["uniform", "half-few-shot", "per-domain"])
def test_two_ranks_together_take_the_step_of_one_with_a_double_batch(name):
    double = sampler(name, batch_size=16)
    for step in range(40):
        ranks = sampler(name).indices(step, 0, 2) + sampler(name).indices(step, 1, 2)
        assert Counter(ranks) == Counter(double.indices(step))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_uniform_shows_every_image_once_an_epoch(world):
    s = sampler("uniform", batch_size=8)
    count = len(TRAIN) + len(SHOTS)
    stream = [i for t in range(60) for r in range(world) for i in s.indices(t, r, world)]
    for epoch in range(len(stream) // count):
        part = stream[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))
    assert stream[:count] != stream[count : 2 * count]
    assert s.steps_per_epoch(world) == -(-count // (8 * world))


def test_uniform_takes_batches_larger_than_the_data():
    s = make_sampler("uniform", images(3), None, 8, 0)
    stream = s.indices(0) + s.indices(1)
    assert [sorted(stream[i : i + 3]) for i in range(0, 15, 3)] == [[0, 1, 2]] * 5
    assert s.steps_per_epoch() == 1


def test_per_domain_takes_as_many_of_each_domain():
    s = make_sampler("per-domain", TRAIN, None, 4, 0)
    domain_batches = {0: [], 1: [], 2: []}
    for step in range(50):
        batch = s.indices(step)
        assert Counter(TRAIN.domains[i] for i in batch) == {0: 4, 1: 4, 2: 4}
        for i in batch:
            domain_batches[TRAIN.domains[i]].append(i)
    for domain, size in ((0, 10), (1, 25), (2, 15)):
        stream = domain_batches[domain]
        for start in range(0, len(stream) - size + 1, size):
            assert len(set(stream[start : start + size])) == size
    assert s.global_batch() == 12
    assert s.global_batch(2) == 24
    assert s.steps_per_epoch() == 5  # 50 images in batches of 12


def test_per_domain_ranks_take_disjoint_parts():
    s = make_sampler("per-domain", TRAIN, None, 5, 0)
    assert not set(s.indices(0, 0, 2)) & set(s.indices(0, 1, 2))


def test_per_domain_includes_few_shot_images_and_those_without_a_domain():
    train = images(6, [0, 0, 1, 1, -1, -1])
    batch = make_sampler("per-domain", train, images(2, [1, 2]), 2, 0)
    seen = {i for step in range(10) for i in batch.indices(step)}
    assert seen == set(range(8))
    assert batch.global_batch() == 8  # domains 0, 1, 2 and none


def test_half_few_shot_takes_all_when_they_fit_in_half_a_batch():
    s = make_sampler("half-few-shot", TRAIN, SHOTS, 16, 0)
    for step in range(20):
        batch = s.indices(step)
        assert sorted(i for i in batch if i >= len(TRAIN)) == list(range(50, 57))
        assert sum(i < len(TRAIN) for i in batch) == 9


def test_half_few_shot_takes_at_most_half_and_cycles_through_all():
    s = make_sampler("half-few-shot", TRAIN, SHOTS, 6, 0)
    few = []
    for step in range(28):
        batch = s.indices(step)
        few += [i for i in batch if i >= len(TRAIN)]
        assert sum(i < len(TRAIN) for i in batch) == 3
    assert Counter(few) == dict.fromkeys(range(50, 57), 12)
    train = [i for step in range(17) for i in s.indices(step) if i < len(TRAIN)]
    assert len(set(train[:50])) == 50
    assert s.steps_per_epoch() == 17


@pytest.mark.parametrize("world", [2, 4])
def test_half_few_shot_deals_few_shot_images_out_evenly(world):
    s = make_sampler("half-few-shot", TRAIN, SHOTS, 8, 0)
    shares = [sum(i >= 50 for i in s.indices(0, rank, world)) for rank in range(world)]
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == 7


def test_wrong_use_is_refused():
    with pytest.raises(UsageError, match="unknown sampler 'unifrom': did you mean 'uniform'"):
        make_sampler("unifrom", TRAIN, None, 8, 0)
    with pytest.raises(UsageError, match="'half-few-shot' needs few-shot images"):
        make_sampler("half-few-shot", TRAIN, images(0), 8, 0)
    with pytest.raises(UsageError, match="batch size of at least 2"):
        make_sampler("half-few-shot", TRAIN, SHOTS, 1, 0)
    with pytest.raises(UsageError, match="'per-domain' needs domains"):
        make_sampler("per-domain", images(4), None, 8, 0)
    with pytest.raises(UsageError, match="batch size 0 is too small"):
        make_sampler("uniform", TRAIN, None, 0, 0)
    with pytest.raises(UsageError, match="seed -1 is negative"):
        make_sampler("uniform", TRAIN, None, 8, -1)
    with pytest.raises(UsageError, match="no training images"):
        make_sampler("uniform", images(0), None, 8, 0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        make_sampler("uniform", TRAIN, None, 8, 0).indices(0, 2, 2)


def in_tars(sizes):
    paths = [
        f"/data/{tar}.tar[{i}:{i + 1}]/{i}.jpg" for tar, n in enumerate(sizes) for i in range(n)
    ]
    return replace(images(len(paths)), paths=tuple(paths))


def test_shards_begin_where_the_tar_or_the_folder_changes():
    assert shard_starts(in_tars([3, 1, 4]).paths) == [0, 3, 4]
    assert shard_starts(["/a/1.jpg", "/a/2.jpg", "/b/1.jpg"]) == [0, 2]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shard_by_shard_every_image_comes_once_an_epoch(world):
    s = make_sampler("shards", in_tars([3, 10, 1, 0, 34]), None, 4, 0)
    shown = [i for step in range(24) for rank in range(world) for i in s.indices(step, rank, world)]
    for epoch in range(len(shown) // 48):
        assert sorted(shown[epoch * 48 : (epoch + 1) * 48]) == list(range(48))
    assert shown[:48] != shown[48:96]


def test_a_window_holds_few_shards_and_is_shuffled():
    order = ShardShuffle(list(range(0, 1000, 10)), 1000, seed=1, window=50)
    first = order.take(0, 50)
    assert first != sorted(first)
    assert len({i // 10 for i in first}) == 5
    shards = [i // 10 for i in order.take(0, 1000)[::10]]
    assert shards != sorted(shards)
    assert sorted(order.take(1000, 1000)) == list(range(1000))
    assert order.take(1000, 50) != first
    assert ShardShuffle(list(range(0, 1000, 10)), 1000, seed=1, window=50).take(990, 70) == [
        *order.take(990, 10),
        *order.take(1000, 60),
    ]
