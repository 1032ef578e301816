"""Folders that are all named like splits, as torchvision, timm and ImageNet have them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attar.data.sources import read_sources
from attar.data.splits import SplitConfig, make_splits
from attar.data.table import ImageTable
from attar.errors import UsageError

CLASSES = ("ant", "bee", "cat", "dog", "emu")


def draw(root: Path, *names: str) -> Path:
    """Write a picture of its own at each of the names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(list(str(path).encode())).integers(0, 255, (8, 8, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path)
    return root


def folders(root: Path, classes: tuple[str, ...] = CLASSES, **counts: int) -> Path:
    """Write `counts` images of each class below each folder."""
    return draw(
        root,
        *(f"{f}/{c}/{i}.png" for f, n in counts.items() for c in classes for i in range(n)),
    )


def origins(table: ImageTable) -> Counter[str]:
    """Count the images by the folder that they come from."""
    return Counter(name.split("/")[0] for name in table.names)


def places(table: ImageTable, **config: float | str) -> dict[str, Counter[str]]:
    """Return where the images of each split come from."""
    tables = make_splits(table, SplitConfig(**config)).tables()
    return {name: origins(part) for name, part in tables.items() if len(part)}


def test_train_and_val_are_splits_and_no_domains(tmp_path: Path) -> None:
    table = read_sources([folders(tmp_path, train=6, val=3)])
    assert table.layout == "split/class/image: train 30, val 15 images, 5 classes"
    assert table.class_names == CLASSES
    assert not table.has_domains
    assert Counter(table.labels) == dict.fromkeys(range(5), 9)
    assert places(table) == {"train": {"train": 30}, "val": {"val": 15}}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "dev", "test_id"),
    ],
)
def test_all_spellings_mean_the_same(tmp_path: Path, train: str, val: str, test: str) -> None:
    table = read_sources([folders(tmp_path, **{train: 4, val: 1, test: 2})])
    assert places(table) == {"train": {train: 20}, "val": {val: 5}, "test_id": {test: 10}}
    assert ": train 20, val 5, test" in table.layout


def test_without_val_validation_is_drawn_from_train_alone(tmp_path: Path) -> None:
    table = read_sources([folders(tmp_path, train=10, test=4)])
    assert table.layout == "split/class/image: train 50, test 20 images, 5 classes"
    assert places(table) == {
        "train": {"train": 45},
        "val": {"train": 5},
        "test_id": {"test": 20},
    }
    splits = make_splits(table, SplitConfig(val_fraction=0.2))
    assert Counter(splits.source.val.labels) == dict.fromkeys(range(5), 2)
    assert places(table, val_fraction=0.0).keys() == {"train", "test_id"}
    other = make_splits(table, SplitConfig(val_fraction=0.2, seed=1))
    assert set(other.source.val.keys) != set(splits.source.val.keys)


def test_copies_of_test_images_are_not_trained_on(tmp_path: Path) -> None:
    root = folders(tmp_path, train=4, test=2)
    copied = (root / "test" / "ant" / "0.png").read_bytes()
    (root / "train" / "ant" / "copy.png").write_bytes(copied)
    splits = make_splits(read_sources([root]), SplitConfig())
    source = {*splits.source.train.names, *splits.source.val.names}
    assert "train/ant/copy.png" not in source
    assert len(splits.test_id) == 10


def test_images_beside_are_divided_as_ever(tmp_path: Path) -> None:
    more = folders(tmp_path / "more", plain=10)
    table = read_sources([folders(tmp_path / "root", train=4, test=2), more / "plain"])
    found = make_splits(table, SplitConfig(val_fraction=0.2)).tables()
    tested = Counter(name.split("/")[0] for name in found["test_id"].names)
    assert tested["test"] == 10
    assert tested["train"] == 0
    assert sum(tested.values()) == 20


def test_domains_below_splits(tmp_path: Path) -> None:
    names = [
        f"{split}/{domain}/{label}/{i}.png"
        for split, count in (("train", 4), ("test", 2))
        for domain in ("art", "photo")
        for label in ("cat", "dog")
        for i in range(count)
    ]
    table = read_sources([draw(tmp_path, *names)])
    assert table.layout == (
        "split/domain/class/image: train 16, test 8 images, 2 domains, 2 classes"
    )
    assert table.domain_names == ("art", "photo")
    assert table.class_names == ("cat", "dog")
    found = make_splits(table, SplitConfig(val_fraction=0.25, held_out_domain="art")).tables()
    assert {k: len(v) for k, v in found.items() if len(v)} == {
        "train": 6,
        "val": 2,
        "test_id": 4,
        "held_out": 12,
    }


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (("train/a.png", "train/b.png", "test/c.png"), "split/image"),
        (("train/x/y/z/a.png", "train/b.png", "test/c.png"), "split/nested folders of images"),
        (("train/ant/a.png", "train/bee/b.png", "test/c.png"), "split/nested folders of images"),
    ],
)
def test_unlabelled_images_are_kept_apart_too(
    tmp_path: Path, names: tuple[str, ...], layout: str
) -> None:
    table = read_sources([draw(tmp_path, *names)])
    assert table.layout == f"{layout}, no labels: train 2, test 1 images"
    assert not table.has_labels
    assert make_splits(table, SplitConfig()).test_id.names == ("test/c.png",)


def test_unlabelled_drops_classes_and_keeps_splits(tmp_path: Path) -> None:
    table = read_sources([folders(tmp_path, train=2, val=1)], unlabelled=True)
    assert table.layout == "split/nested folders of images, no labels: train 10, val 5 images"
    assert not table.has_labels
    assert places(table) == {"train": {"train": 10}, "val": {"val": 5}}


def test_one_other_folder_makes_all_of_them_domains(tmp_path: Path) -> None:
    table = read_sources([folders(tmp_path, train=2, val=2, sketch=2)])
    assert table.layout == "domain/class/image: 3 domains, 5 classes, 30 images"
    assert table.domain_names == ("sketch", "train", "val")
    assert set(table.splits) == {None}


def test_classes_and_paths_named_like_splits_are_what_they_were(tmp_path: Path) -> None:
    vehicles = read_sources([draw(tmp_path / "a", "train/1.png", "plane/2.png")])
    assert vehicles.class_names == ("plane", "train")
    part = read_sources([draw(tmp_path / "b", "train/1.png")], superset=True)
    assert part.class_names == ("train",)
    root = folders(tmp_path / "c", train=2, val=2)
    apart = read_sources([root / "train", root / "val"])
    assert set(apart.splits) == {None}, "given apart, they are folders like any others"


def test_a_split_is_no_domain_to_hold_out(tmp_path: Path) -> None:
    root = folders(tmp_path, train=2, val=2)
    with pytest.raises(
        UsageError, match=r"'val' cannot be held out.*train and val, are no domains"
    ):
        read_sources([root], held_out_domain="val")


def test_unseen_classes_asked_of_named_splits_are_refused(tmp_path: Path) -> None:
    table = read_sources([folders(tmp_path, train=2, val=2)])
    with pytest.raises(UsageError, match=r"has a split already.*--data ROOT/train"):
        make_splits(table, SplitConfig(unseen_share=0.4))


def test_a_manifest_may_leave_validation_to_attar(tmp_path: Path) -> None:
    root = folders(tmp_path, a=10, b=2)
    rows = [
        f"{f}/{c}/{i}.png,{c},{split}"
        for f, n, split in (("a", 10, "trainval"), ("b", 2, "test"))
        for c in CLASSES
        for i in range(n)
    ]
    (root / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    assert places(read_sources([root / "list.csv"])) == {
        "train": {"a": 45},
        "val": {"a": 5},
        "test_id": {"b": 10},
    }
