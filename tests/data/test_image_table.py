import pytest

from attar.data.table import ImageTable, concatenate
from attar.errors import AttarError


def make_table(labels, class_names, domains=None, domain_names=(), layout=""):
    count = len(labels)
    return ImageTable(
        paths=tuple(f"/data/{i}.png" for i in range(count)),
        names=tuple(f"{i}.png" for i in range(count)),
        keys=tuple(f"{i:064x}" for i in range(count)),
        labels=tuple(labels),
        domains=tuple(domains or [-1] * count),
        captions=("a dog", *[None] * (count - 1)),
        splits=(*[None] * (count - 1), "val"),
        class_names=class_names,
        domain_names=domain_names,
        layout=layout,
    )


def test_a_table_survives_saving(tmp_path):
    table = make_table([0, 1, -1], ("chat", "chien é"), [1, 0, -1], ("x", "y"), "3 images")
    table.save(tmp_path / "deep" / "table.parquet")
    assert ImageTable.load(tmp_path / "deep" / "table.parquet") == table


def test_an_empty_table_survives_saving(tmp_path):
    table = make_table([0, 1], ("a", "b")).select([])
    table.save(tmp_path / "table.parquet")
    assert ImageTable.load(tmp_path / "table.parquet") == table
    assert len(table) == 0
    assert not table.has_labels


def test_loading_something_else_names_the_file(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(AttarError, match=r"table\.parquet is not a table of images"):
        ImageTable.load(path)


def test_select_keeps_order_and_names():
    table = make_table([0, 1, 1], ("a", "b")).select([2, 0])
    assert table.names == ("2.png", "0.png")
    assert table.labels == (1, 0)
    assert table.captions == (None, "a dog")
    assert table.class_names == ("a", "b")


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        ImageTable(paths=("/a",), names=(), keys=(), labels=(), domains=(), captions=(), splits=())


def test_concatenation_unions_names_and_moves_indices():
    first = make_table([0, 1], ("cat", "dog"), [0, 0], ("photo",), "two")
    second = make_table([0, 1, -1], ("dog", "emu"), [0, 1, -1], ("art", "photo"), "three")
    both = concatenate([first, second])
    assert both.class_names == ("cat", "dog", "emu")
    assert both.labels == (0, 1, 1, 2, -1)
    assert both.domain_names == ("photo", "art")
    assert both.domains == (0, 0, 1, 0, -1)
    assert both.layout == "two; three"
    assert both.has_labels
    assert both.has_domains
    assert len(concatenate([])) == 0
