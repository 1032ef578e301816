"""Which images a probe learns from, and which test it."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from tests.stages.tiny_runs import write_pictures

from attar.data.sources import read_sources
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.suites.probe_splits import dataset_name, probe_data

NOBODY: frozenset[str] = frozenset()
ROOT = Path("/data/pets")


def table(each: int = 10, domains: tuple[str, ...] = (), folder: str = "", **changes) -> ImageTable:
    """Return `each` images of cat and dog in every domain; their keys are their paths."""
    rows = [
        (domain, label, number)
        for domain in range(max(1, len(domains)))
        for label in range(2)
        for number in range(each)
    ]
    paths = tuple(f"{ROOT}/{folder}{d}-{label}-{number}.png" for d, label, number in rows)
    images = ImageTable(
        paths=paths,
        names=paths,
        keys=paths,
        labels=tuple(label for _, label, _ in rows),
        domains=tuple(d if domains else -1 for d, _, _ in rows),
        captions=(None,) * len(rows),
        splits=(None,) * len(rows),
        class_names=("cat", "dog"),
        domain_names=domains,
    )
    return replace(images, **changes)


def sizes(images: ImageTable, seen=NOBODY, roots=(ROOT,), **config) -> dict[str, int]:
    data = probe_data(images, roots, frozenset(seen), LinearProbeConfig(**config))
    tests = {name: len(test.table) for name, test in data.tests.items()}
    return {"train": len(data.train), "val": len(data.val), **tests}


def test_without_other_word_a_seeded_part_of_every_class_is_tested() -> None:
    images = table(each=20)
    assert sizes(images) == {"train": 32, "val": 0, "test_id": 8}
    one, two, other = (
        probe_data(images, [ROOT], NOBODY, LinearProbeConfig(split_seed=seed)) for seed in (0, 0, 1)
    )
    assert one.tests["test_id"].table.keys == two.tests["test_id"].table.keys
    assert set(one.tests["test_id"].table.keys) != set(other.tests["test_id"].table.keys)
    assert sorted(one.tests["test_id"].table.labels) == [0] * 4 + [1] * 4


def test_a_manifest_says_it_first() -> None:
    images = table()
    splits = tuple("test" if row % 5 == 0 else "val" if row % 5 == 1 else "train"
                   for row in range(20))  # fmt: skip
    assert sizes(replace(images, splits=splits)) == {"train": 12, "val": 4, "test_id": 4}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("Test", "train", "valid"), {"train": 4, "val": 4, "test_id": 4}),
        (("train", "test"), {"train": 4, "val": 0, "test_id": 4}),
    ],
)
def test_folders_named_train_and_test_are_splits(
    tmp_path: Path, folders: tuple[str, ...], expected: dict[str, int]
) -> None:
    for place, folder in enumerate(folders):
        write_pictures(tmp_path / folder, ("cat", "dog"), 2, seed=1000 * place)
    assert sizes(read_sources([tmp_path]), roots=[tmp_path]) == expected


def test_val_beside_train_chooses_and_is_not_tested(tmp_path: Path) -> None:
    for place, folder in enumerate(("train", "val")):
        write_pictures(tmp_path / folder, ("cat", "dog"), 2, seed=1000 * place)
    with pytest.raises(UsageError, match=r"no image is left to test \(train 4, val 4\).*rename"):
        sizes(read_sources([tmp_path]), roots=[tmp_path])


def test_domains_beside_one_named_train_are_domains() -> None:
    assert sizes(table(domains=("photo", "train")))["train"] == 32


def test_two_roots_named_train_and_test_are_splits() -> None:
    parts = [table(folder="train/"), table(folder="test/", each=3)]
    both = {
        name: sum((getattr(part, name) for part in parts), ())
        for name in ("paths", "names", "keys", "labels", "domains", "captions", "splits")
    }
    images = replace(parts[0], **both)
    roots = [ROOT / "train", ROOT / "test"]
    assert sizes(images, roots=roots) == {"train": 20, "val": 0, "test_id": 6}
    assert dataset_name(roots) == "pets"
    tars = [ROOT / "train" / "{0..3}.tar", ROOT / "test" / "0.tar"]
    assert sizes(images, roots=tars) == {"train": 20, "val": 0, "test_id": 6}
    assert dataset_name(tars) == "pets"
    assert dataset_name([ROOT, Path("/data/cars")]) == "pets+cars"


def test_a_held_out_domain_is_only_tested() -> None:
    images = table(domains=("photo", "sketch"))
    data = probe_data(images, [ROOT], NOBODY, LinearProbeConfig(held_out_domain="sketch"))
    assert set(data.tests) == {"test_id", "held_out"}
    assert set(data.tests["held_out"].table.domains) == {1}
    assert set(data.train.domains) | set(data.tests["test_id"].table.domains) == {0}
    alone = sizes(images, held_out_domain="sketch", test_fraction=0.0)
    assert alone == {"train": 20, "val": 0, "held_out": 20}
    with pytest.raises(UsageError, match="unknown domain 'skech'"):
        probe_data(images, [ROOT], NOBODY, LinearProbeConfig(held_out_domain="skech"))


def test_what_a_model_was_trained_on_is_learnt_from_but_never_tested(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = table(domains=("photo", "sketch"))
    seen = {key for key in images.keys if key.endswith(("0.png", "1.png", "2.png"))}
    data = probe_data(images, [ROOT], frozenset(seen), LinearProbeConfig())
    assert seen <= set(data.train.keys)
    assert not seen & set(data.tests["test_id"].table.keys)
    with caplog.at_level(logging.WARNING):
        apart = probe_data(
            images, [ROOT], frozenset(seen), LinearProbeConfig(held_out_domain="sketch")
        )
    assert len(apart.tests["held_out"].table) == 14
    assert "left out 6 of 40 images" in caplog.text
    with pytest.raises(UsageError, match="no image is left to test"):
        probe_data(images, [ROOT], frozenset(images.keys), LinearProbeConfig())


def test_no_image_is_on_both_sides() -> None:
    images = table(each=20)
    keys = tuple(key if row % 4 else images.keys[0] for row, key in enumerate(images.keys))
    copies = replace(images, keys=keys, labels=(0,) * 40)
    data = probe_data(copies, [ROOT], NOBODY, LinearProbeConfig())
    assert not set(data.train.keys) & set(data.tests["test_id"].table.keys)


def test_images_without_a_label_are_left_aside() -> None:
    images = table()
    labels = tuple(-1 if row % 2 else label for row, label in enumerate(images.labels))
    assert sum(sizes(replace(images, labels=labels)).values()) == 10
    with pytest.raises(UsageError, match="needs labelled images"):
        sizes(replace(images, labels=(-1,) * 20))


def test_images_with_several_labels_are_all_used_also_those_that_show_no_class() -> None:
    sets = ((0, 1), (1,), (), (0,)) * 5
    images = table(labels=(-1,) * 20, label_sets=sets)
    assert sizes(images) == {"train": 16, "val": 0, "test_id": 4}


def test_only_training_images_are_refused() -> None:
    with pytest.raises(UsageError, match="no image is left to test"):
        sizes(table(splits=("train",) * 20))
