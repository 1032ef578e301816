"""Which classes training never sees, and who is ranked among whom."""

from pathlib import Path

import pytest

from attar.data.class_splits import draw_unseen, relabel
from attar.data.splits import SplitConfig, make_splits
from attar.data.table import ImageTable
from attar.errors import UsageError

CLASSES = tuple(f"class {letter}" for letter in "abcdefgh")
DOMAINS = ("ink", "photo")
EACH = 5


def make_table(**changes) -> ImageTable:
    """Return every class in both domains, EACH images a piece."""
    rows = [(c, d, n) for c in range(len(CLASSES)) for d in range(2) for n in range(EACH)]
    names = tuple(f"{DOMAINS[d]}/{CLASSES[c]}/{n}.png" for c, d, n in rows)
    columns = {
        "paths": tuple(f"/data/{name}" for name in names),
        "names": names,
        "keys": tuple(f"{i:064x}" for i in range(len(rows))),
        "labels": tuple(c for c, _, _ in rows),
        "domains": tuple(d for _, d, _ in rows),
        "captions": (None,) * len(rows),
        "splits": (None,) * len(rows),
        "class_names": CLASSES,
        "domain_names": DOMAINS,
    }
    return ImageTable(**(columns | changes))


def names_in(table: ImageTable) -> set[str]:
    return {table.class_names[label] for label in table.labels}


def test_training_sees_no_image_of_an_unseen_class() -> None:
    splits = make_splits(make_table(), SplitConfig(unseen_share=0.5, seed=3))
    unseen = set(draw_unseen(CLASSES, 0.5, 3))
    assert len(unseen) == 4
    assert names_in(splits.unseen_classes) == set(splits.unseen_classes.class_names) == unseen
    assert len(splits.unseen_classes) == 4 * 2 * EACH
    for table in (splits.source.train, splits.source.val, splits.test_id):
        assert len(table) > 0
        assert set(table.class_names) == names_in(splits.source.train) == set(CLASSES) - unseen
    assert sum(len(t) for t in splits.tables().values()) == len(make_table())


def test_the_draw_depends_on_the_seed_and_on_nothing_else() -> None:
    drawn = draw_unseen(CLASSES, 0.5, 0)
    assert draw_unseen(tuple(reversed(CLASSES)), 0.5, 0) == tuple(reversed(drawn))
    assert len({draw_unseen(CLASSES, 0.5, seed) for seed in range(8)}) > 1


def test_unseen_in_the_held_out_domain_is_unseen_twice() -> None:
    config = SplitConfig(unseen_share=0.25, held_out_domain="ink")
    splits = make_splits(make_table(), config)
    assert set(splits.unseen_classes.domains) == {0, 1}
    assert set(splits.held_out.domains) == {0}
    assert not names_in(splits.held_out) & names_in(splits.unseen_classes)
    assert set(splits.source.train.domains) == {1}


def test_a_file_names_the_unseen_classes(tmp_path: Path) -> None:
    path = tmp_path / "unseen.txt"
    path.write_text("Class_B\nclass c\n")
    splits = make_splits(make_table(), SplitConfig(unseen_classes=path))
    assert splits.unseen_classes.class_names == ("class b", "class c")
    path.write_text("class b\nclass z\n")
    with pytest.raises(UsageError, match="class z"):
        make_splits(make_table(), SplitConfig(unseen_classes=path))


def test_a_manifest_names_them_image_by_image() -> None:
    table = make_table()
    by_label = {0: "train", 1: "train", 2: "train", 3: "test_id"}
    named = make_table(
        splits=tuple(by_label.get(label, "unseen_classes") for label in table.labels)
    )
    splits = make_splits(named, SplitConfig())
    assert splits.unseen_classes.class_names == CLASSES[4:]
    assert splits.source.train.class_names == splits.test_id.class_names == CLASSES[:4]
    mixed = list(named.splits)
    mixed[0] = "unseen_classes"  # an image of a class that is trained on
    with pytest.raises(UsageError, match="'class a'"):
        make_splits(make_table(splits=tuple(mixed)), SplitConfig())


def test_few_shot_images_bring_their_classes_into_training() -> None:
    config = SplitConfig(unseen_share=0.5, few_shot=2)
    splits = make_splits(make_table(), config)
    few_shot, rest = splits.source.few_shot, splits.unseen_classes
    assert splits.source.train.class_names == few_shot.class_names == CLASSES
    assert names_in(few_shot) == names_in(rest) == set(rest.class_names)
    assert len(few_shot) == 2 * 4
    # The first two by name: of the first domain, as "ink" comes before "photo".
    assert all(name.startswith("ink/") and name[-5] in "01" for name in few_shot.names)
    assert not set(few_shot.keys) & set(rest.keys)
    drawn = make_splits(make_table(), SplitConfig(unseen_share=0.5, few_shot=2, few_shot_seed=1))
    assert drawn.source.few_shot.names != few_shot.names


def test_some_unseen_classes_may_stay_unseen() -> None:
    config = SplitConfig(unseen_share=0.5, few_shot=1, few_shot_share=0.5)
    splits = make_splits(make_table(), config)
    further = set(splits.further_unseen.class_names)
    assert names_in(splits.further_unseen) == further
    assert len(further) == len(splits.unseen_classes.class_names) == 2
    assert not further & names_in(splits.source.few_shot)
    assert not further & set(splits.source.train.class_names)
    assert not further & set(splits.unseen_classes.class_names)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"unseen_share": 1.0}, "unseen_share 1"),
        ({"unseen_share": 0.99}, "fewer than two"),
        ({"unseen_share": 0.1}, "fewer than two"),
        ({"unseen_share": 0.5, "few_shot_share": 0.0}, "few_shot_share"),
        ({"few_shot": 1}, "unseen-share"),
    ],
)
def test_what_cannot_be_divided_is_refused(changes: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        make_splits(make_table(), SplitConfig(**changes))


def test_a_file_shared_with_an_unseen_class_is_left_out_of_training() -> None:
    table = make_table()
    unseen = table.class_names.index(draw_unseen(CLASSES, 0.5, 0)[0])
    seen = next(i for i, n in enumerate(CLASSES) if n not in draw_unseen(CLASSES, 0.5, 0))
    keys = list(table.keys)
    keys[table.labels.index(seen)] = keys[table.labels.index(unseen)]
    splits = make_splits(make_table(keys=tuple(keys)), SplitConfig(unseen_share=0.5))
    assert CLASSES[seen] in splits.source.train.class_names
    assert not set(splits.source.train.keys) & set(splits.unseen_classes.keys)
    assert any("left out" in note for note in splits.notes)


def test_a_class_half_named_unseen_is_refused_by_name() -> None:
    some = tuple("unseen_classes" if i % 2 else None for i in range(len(make_table())))
    with pytest.raises(UsageError, match=r"both unseen and seen .*'class a'"):
        make_splits(make_table(splits=some), SplitConfig())


def test_unseen_classes_of_a_manifest_stay_unseen_in_a_held_out_domain() -> None:
    table = make_table()
    named = tuple("unseen_classes" if label > 4 else None for label in table.labels)
    splits = make_splits(make_table(splits=named), SplitConfig(held_out_domain="ink"))
    assert set(splits.unseen_classes.domains) == {0, 1}
    assert names_in(splits.held_out) == set(CLASSES[:5])


def test_copies_of_shots_are_in_no_split() -> None:
    table = make_table()
    label = table.class_names.index(draw_unseen(CLASSES, 0.5, 0)[0])
    rows = [row for row, one in enumerate(table.labels) if one == label]
    keys = list(table.keys)
    keys[rows[-1]] = keys[rows[0]]
    config = SplitConfig(unseen_share=0.5, few_shot=1)
    splits = make_splits(make_table(keys=tuple(keys)), config)
    assert splits.source.few_shot.keys.count(keys[rows[0]]) == 1
    assert keys[rows[0]] not in splits.unseen_classes.keys
    assert "1 copies of few-shot images left out." in splits.notes


def test_relabel_refuses_a_class_that_is_not_there() -> None:
    table = make_table()
    same = relabel(table, tuple(reversed(CLASSES)))
    assert [same.class_names[i] for i in same.labels] == [CLASSES[i] for i in table.labels]
    with pytest.raises(UsageError, match="class h"):
        relabel(table, CLASSES[:-1])
