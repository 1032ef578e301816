import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from attar.data.domainbed import domainbed_split, make_domainbed_splits
from attar.data.share import filter_parity
from attar.data.sources import read_sources
from attar.data.splits import SplitConfig, make_splits
from attar.data.table import ImageTable
from attar.errors import UsageError


def make_table(rows, class_names=("cat", "dog"), domain_names=("art", "photo")):
    """Return a table of (name, domain, label[, key[, split]]) rows."""
    rows = [(*row, *(None,) * (5 - len(row))) for row in rows]
    return ImageTable(
        paths=tuple(f"/data/{row[0]}" for row in rows),
        names=tuple(row[0] for row in rows),
        keys=tuple(row[3] or hashlib.sha256(row[0].encode()).hexdigest() for row in rows),
        domains=tuple(row[1] for row in rows),
        labels=tuple(row[2] for row in rows),
        captions=(None,) * len(rows),
        splits=tuple(row[4] for row in rows),
        class_names=class_names,
        domain_names=domain_names,
    )


def grid(per_class=10, domains=("art", "photo"), classes=("cat", "dog")):
    return make_table(
        [
            (f"{domain}/{label}/{i:03}.png", d, c)
            for d, domain in enumerate(domains)
            for c, label in enumerate(classes)
            for i in range(per_class)
        ],
        classes,
        domains,
    )


def places(splits):
    return {name: split for split, table in splits.tables().items() for name in table.names}


def sizes(splits):
    return {name: len(table) for name, table in splits.tables().items() if len(table)}


def test_every_image_lands_once_and_fractions_hold_in_each_stratum():
    table = grid(per_class=20)
    splits = make_splits(table, SplitConfig(val_fraction=0.1, test_fraction=0.2))
    assert sorted(places(splits)) == sorted(table.names)
    assert sum(len(t) for t in splits.tables().values()) == len(table)
    for part, each in ((splits.source.train, 14), (splits.source.val, 2), (splits.test_id, 4)):
        counts = Counter(zip(part.domains, part.labels, strict=True))
        assert counts == {(d, c): each for d in range(2) for c in range(2)}
    assert splits.notes == ()
    assert splits.describe() == "train 56, val 8, test_id 16"


def test_the_seed_decides_and_the_order_of_the_files_does_not():
    table = grid(per_class=50)
    first = places(make_splits(table, SplitConfig(seed=0)))
    assert first == places(make_splits(table, SplitConfig(seed=0)))
    assert first != places(make_splits(table, SplitConfig(seed=1)))
    backwards = table.select(range(len(table) - 1, -1, -1))
    assert first == places(make_splits(backwards, SplitConfig(seed=0)))


def test_a_held_out_domain_is_out_of_everything_else():
    table = grid()
    splits = make_splits(table, SplitConfig(held_out_domain="photo"))
    assert set(splits.held_out.domains) == {1}
    assert len(splits.held_out) == 20
    for name, part in splits.tables().items():
        assert name == "held_out" or set(part.domains) <= {0}


def test_an_unknown_held_out_domain_is_refused():
    with pytest.raises(UsageError, match="unknown domain 'foto': did you mean 'photo'"):
        make_splits(grid(), SplitConfig(held_out_domain="foto"))
    with pytest.raises(UsageError, match="the data has no domains"):
        make_splits(make_table([("a.png", -1, -1)]), SplitConfig(held_out_domain="photo"))
    with pytest.raises(UsageError, match=r"no images are left to train on of 20 \(held_out 20\)"):
        make_splits(grid(domains=("art",)), SplitConfig(held_out_domain="art"))


@pytest.mark.parametrize("per_class", [1, 2, 3, 4, 7])
def test_small_classes_keep_training_images_and_the_shares_still_hold(per_class):
    classes = tuple(f"class{i:03}" for i in range(120))
    table = grid(per_class, domains=("only",), classes=classes)
    splits = make_splits(table, SplitConfig(val_fraction=0.1, test_fraction=0.2))
    assert set(splits.source.train.labels) == set(range(120))
    if per_class >= 3:
        assert len(splits.test_id) == pytest.approx(0.2 * len(table), abs=1)
        assert len(splits.source.val) == pytest.approx(0.1 * len(table), abs=1)
    if per_class == 1:
        assert splits.notes == ("No image is left for validation.",)


def test_leftovers_of_tiny_classes_do_not_empty_a_large_one():
    rows = [(f"t/{i}.png", -1, i) for i in range(500)] + [
        (f"b/{i}.png", -1, 500) for i in range(50)
    ]
    table = make_table(rows, tuple(f"c{i}" for i in range(501)), ())
    train = make_splits(table, SplitConfig()).source.train
    assert Counter(train.labels)[500] >= 33


def test_unlabelled_images_are_divided_too():
    table = make_table([(f"{i}.png", -1, -1) for i in range(1000)])
    splits = make_splits(table, SplitConfig(test_fraction=0.2, val_fraction=0.1))
    assert sizes(splits) == {"train": 700, "val": 100, "test_id": 200}


@pytest.mark.parametrize("seed", range(5))
def test_identical_bytes_never_straddle(seed):
    rng = np.random.default_rng(seed)
    keys = [f"{k:064x}" for k in rng.integers(0, 60, 200)]
    rows = [
        (f"{i}.png", int(rng.integers(-1, 2)), int(rng.integers(-1, 2)), key)
        for i, key in enumerate(keys)
    ]
    splits = make_splits(make_table(rows), SplitConfig(seed=seed))
    parts = [set(table.keys) for table in splits.tables().values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(set(keys))
    assert sum(len(t) for t in splits.tables().values()) == 200


def test_copies_of_held_out_images_leave_the_source_and_are_counted():
    copied = "c" * 64
    rows = [(f"art/cat/{i}.png", 0, 0) for i in range(20)]
    rows += [("art/cat/copy.png", 0, 0, copied), ("loose.png", -1, -1, copied)]
    rows += [("photo/cat/0.png", 1, 0, copied), ("photo/cat/1.png", 1, 0)]
    splits = make_splits(make_table(rows), SplitConfig(held_out_domain="photo"))
    assert splits.held_out.names == ("photo/cat/0.png", "photo/cat/1.png")
    assert not {"art/cat/copy.png", "loose.png"} & set(places(splits))
    assert splits.notes == (
        "2 source images left out: identical to images of the held-out domain.",
    )


def test_a_manifest_that_lets_copies_straddle_loses_the_source_copies():
    same, other = "a" * 64, "b" * 64
    rows = [(f"{i}.png", -1, -1, None, "train") for i in range(5)]
    rows += [("t.png", -1, -1, same, "train"), ("u.png", -1, -1, same, "test")]
    rows += [("v.png", -1, -1, other, "train"), ("w.png", -1, -1, other, "val")]
    rows += [("x.png", -1, -1, same), ("y.png", -1, -1, other)]
    splits = make_splits(make_table(rows), SplitConfig())
    where = places(splits)
    assert {"t.png", "v.png"}.isdisjoint(where)
    assert (where["u.png"], where["w.png"]) == ("test_id", "val")
    assert (where["x.png"], where["y.png"]) == ("test_id", "val")
    assert len(splits.notes) == 2
    assert splits.notes[0].startswith("1 source image left out: identical to images of the test")


def test_the_held_out_domain_overrules_the_manifest():
    rows = [(f"{i}.png", i % 2, 0, None, ("train", "val", "test")[i % 3]) for i in range(12)]
    splits = make_splits(make_table(rows), SplitConfig(held_out_domain="photo"))
    assert len(splits.held_out) == 6
    assert sizes(splits)["train"] == 2


def test_an_unknown_split_name_is_refused():
    with pytest.raises(UsageError, match="unknown split 'tset': did you mean"):
        make_splits(make_table([("a.png", 0, 0, None, "tset")]), SplitConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        {"val_fraction": -0.1},
        {"test_fraction": 1.0},
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"few_shot": -1},
    ],
)
def test_impossible_fractions_are_refused(wrong):
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        make_splits(grid(), SplitConfig(**wrong))


def test_few_shot_moves_the_first_images_of_each_class_out_of_the_ood_test():
    rows = [(f"train/{i}.png", -1, 0, None, "train") for i in range(5)]
    rows += [(f"new/{c}/{i}.png", -1, c, None, "test_ood") for c in (1, 0) for i in range(4)]
    rows += [("new/0/z-copy.png", -1, 0, hashlib.sha256(b"new/0/0.png").hexdigest(), "test_ood")]
    splits = make_splits(make_table(rows), SplitConfig(few_shot=2))
    assert sorted(splits.source.few_shot.names) == [
        *("new/0/0.png", "new/0/1.png", "new/1/0.png", "new/1/1.png")
    ]
    assert len(splits.test_ood) == 4
    with pytest.raises(UsageError, match="few_shot 2 needs labelled images of unseen classes"):
        make_splits(grid(), SplitConfig(few_shot=2))


def test_domainbed_split_equals_the_formula_computed_apart():
    for count, trial, env in ((2048, 0, 0), (2344, 0, 1), (1670, 1, 2), (3929, 2, 3)):
        text = f"({trial}, {env})".encode()
        shuffled = np.arange(count).tolist()
        np.random.RandomState(int(hashlib.md5(text).hexdigest(), 16) % 2**31).shuffle(shuffled)
        fifth = int(count * 0.2)
        train, val = domainbed_split(count, trial, env)
        assert val == shuffled[:fifth]
        assert train == shuffled[fifth:]


def test_domainbed_splits_follow_imagefolder_order_and_alphabetical_domains(tmp_path):
    rng = np.random.default_rng(0)
    for domain, count in (("Zebra", 13), ("art", 11), ("photo", 17)):
        for label in ("cat", "Dog"):
            for i in range(count):
                path = tmp_path / domain / label / f"{'ab'[i % 2]}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    table = read_sources([tmp_path])
    splits = make_domainbed_splits(table, "art", trial_seed=1)
    expected_val, expected_train = set(), set()
    for env, domain in enumerate(("Zebra", "art", "photo")):
        files = [
            f"{domain}/{folder.name}/{file.name}"
            for folder in sorted((tmp_path / domain).iterdir(), key=lambda p: p.name)
            for file in sorted(folder.iterdir(), key=lambda p: p.name)
        ]
        keys = list(range(len(files)))
        seed = int(hashlib.md5(str((1, env)).encode()).hexdigest(), 16) % 2**31
        np.random.RandomState(seed).shuffle(keys)
        cut = int(len(files) * 0.2)
        if domain == "art":
            test_in = {files[k] for k in keys[cut:]}
            assert set(splits.held_out.names) == set(files)
        else:
            expected_val |= {files[k] for k in keys[:cut]}
            expected_train |= {files[k] for k in keys[cut:]}
    assert set(splits.source.val.names) == expected_val
    assert set(splits.source.train.names) == expected_train
    assert len(splits.test_id) == 0
    inner = make_domainbed_splits(table, "art", trial_seed=1, held_out_part="in")
    assert set(inner.held_out.names) == test_in
    # A part of the table keeps every domain's index, also when a domain has no image left.
    part = table.select([i for i, name in enumerate(table.names) if not name.startswith("Zebra")])
    photo = {name for name in expected_val if name.startswith("photo")}
    assert set(make_domainbed_splits(part, "art", trial_seed=1).source.val.names) == photo


def test_domainbed_splits_drop_copies_of_held_out_images():
    table = grid(per_class=10)
    keys = list(table.keys)
    keys[0] = keys[-1]
    rows = zip(table.names, table.domains, table.labels, keys, strict=True)
    splits = make_domainbed_splits(make_table(list(rows)), "photo")
    assert "art/cat/000.png" not in places(splits)
    assert len(splits.source.train) + len(splits.source.val) == 19
    assert "1 source image left out" in splits.notes[0]


def test_domainbed_splits_need_domains():
    with pytest.raises(UsageError, match="unknown domain 'clipart'"):
        make_domainbed_splits(grid(), "clipart")
    with pytest.raises(UsageError, match="at least two domains"):
        make_domainbed_splits(grid(domains=("art",)), "art")
    rows = [("a/b/0.png", 0, 0), ("c/b/1.png", 1, 0), ("2.png", -1, 0)]
    with pytest.raises(UsageError, match="1 images without one"):
        make_domainbed_splits(make_table(rows), "art")


def test_parity_is_the_last_bit_of_the_sha256_of_the_name():
    table = grid(per_class=25)
    odd, even = filter_parity(table, "odd"), filter_parity(table, "even")
    assert sorted(odd.names + even.names) == sorted(table.names)
    assert all(hashlib.sha256(n.encode()).digest()[-1] & 1 == 1 for n in odd.names)
    assert all(hashlib.sha256(n.encode()).digest()[-1] & 1 == 0 for n in even.names)
    assert odd.names
    assert even.names
    with pytest.raises(UsageError, match="unknown parity 'add': did you mean 'odd'"):
        filter_parity(table, "add")


def test_the_part_of_the_held_out_domain_is_domainbeds_alone():
    with pytest.raises(UsageError, match=r"--splits.held-out-part in .* --protocol domainbed"):
        make_splits(grid(), SplitConfig(held_out_domain="art", held_out_part="in"))
