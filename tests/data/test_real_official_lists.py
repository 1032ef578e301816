"""Li et al.'s official lists as they were published, where they are at hand."""

import os
from pathlib import Path

import pytest

from attar.data.class_lists import (
    match_images,
    read_official_classes,
    read_official_lists,
)
from attar.errors import UsageError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
REAL = Path(os.environ.get("ATTAR_TEST_DATA", SHARED)) / "li2023"
needs_real_lists = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"the official lists are not at {REAL} (ATTAR_TEST_DATA)"
)

TABLE_13 = {
    "CaltechBirds": (4122, 1740, 5926, 100, 100),
    "StanfordCars": (2874, 1164, 4106, 98, 98),
    "Flower102": (3112, 1303, 3774, 51, 51),
    "Food101": (35700, 15300, 50000, 51, 50),
    "SUN397": (38663, 16444, 53647, 200, 197),
}
UNDESCRIBED = {
    "CaltechBirds": ("Scott Oriole", "White necked Raven"),
    "StanfordCars": ("Ferrari 458 Italia Convertible 2012",),
    "Flower102": ("bolero deep blue",),
}


@needs_real_lists
@pytest.mark.parametrize("name", TABLE_13)
def test_the_official_lists_are_those_of_table_13(name: str) -> None:
    lists = read_official_lists(REAL / name)
    seen, tested, unseen = ({c for c, _ in listed} for listed in lists.splits().values())
    counts = [len(listed) for listed in lists.splits().values()]
    assert (*counts, len(seen), len(unseen)) == TABLE_13[name]
    assert tested == seen
    assert not seen & unseen
    assert seen | unseen == set(lists.class_names)
    assert lists.undescribed == UNDESCRIBED.get(name, ())
    assert list(lists.labels().values()) == list(lists.class_names.values())


@needs_real_lists
def test_the_official_descriptions_belong_to_their_classes() -> None:
    described = {
        ("SUN397", "youth_hostel"): "multi-story building or series of buildings",
        ("SUN397", "abbey"): "An abbey is a large",
        ("Food101", "waffles"): "Waffles are round, flat cakes",
        ("CaltechBirds", "200.Common_Yellowthroat"): "Yellowthroat is a small, plump",
        ("tiered-ImageNet", "n03255030"): "A dumbbell is a small handheld weight",
    }
    for (name, folder), words in described.items():
        assert words in read_official_classes(REAL / name).descriptions[folder]


@needs_real_lists
def test_tiered_imagenet_has_names_and_no_lists() -> None:
    classes = read_official_classes(REAL / "tiered-ImageNet")
    assert len(classes.class_names) == 1000
    assert len(classes.undescribed) == 7
    with pytest.raises(UsageError, match=r"lacks train_data\.txt, val_on_train_data\.txt"):
        read_official_lists(REAL / "tiered-ImageNet")


@needs_real_lists
def test_a_flat_copy_of_stanford_cars_is_found(tmp_path: Path) -> None:
    (tmp_path / "cars_train").mkdir()
    for number in range(1, 8145):
        (tmp_path / "cars_train" / f"{number:05}.jpg").touch()
    lists = read_official_lists(REAL / "StanfordCars")
    entries = match_images(lists, tmp_path)
    assert len({entry.path for entry in entries}) == 8144
    assert entries[0].name == "cars_train/05127.jpg"
    assert entries[0].label == "Toyota Corolla Sedan 2012"
