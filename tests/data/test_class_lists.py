import json

import pytest

from attar.data.classes import ClassList, make_class_list, match_labels, read_class_list
from attar.errors import UsageError


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def test_a_text_file_gives_one_class_a_line(tmp_path):
    path = write(tmp_path / "c.txt", "\n cat \r\n\nGolden Retriever\nétoile\n", "utf-8-sig")
    assert read_class_list(path) == ClassList(("cat", "Golden Retriever", "étoile"), ((), (), ()))


def test_json_gives_descriptions_in_order(tmp_path):
    path = write(tmp_path / "c.json", json.dumps({"dog": ["barks", "furry"], "ant": "small"}))
    assert read_class_list(path) == ClassList(("dog", "ant"), (("barks", "furry"), ("small",)))


def test_a_json_list_has_no_descriptions(tmp_path):
    path = write(tmp_path / "c.json", '["dog", "ant"]')
    assert read_class_list(path) == make_class_list(["dog", "ant"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "cat\ndog\ncat\n", "duplicates: 'cat'; keep"),
        ("c.txt", "sea_lion\ndog\nSea lion\n", r"duplicates: 'Sea lion' \(as 'sea_lion'\)"),
        ("c.json", '{"cat": [], "dog": [], "cat": ["x"]}', "duplicates: 'cat'"),
        ("c.txt", "\n \n", "is empty"),
        ("c.json", "{}", "is empty"),
        ("c.txt", "cat\n", "one class only"),
        ("c.json", '{"cat": []}', "one class only"),
        ("c.json", '{"cat": [], " ": []}', "an empty class name"),
        ("c.txt", "n01440764\ttench\nn01\tfish\n", "a tab in line 1"),
        ("c.json", "{cat", "not valid JSON"),
        ("c.json", '{"cat": [1], "dog": []}', "must be JSON"),
        ("c.json", '{"cat": {"a": ["b"]}, "dog": []}', "must be JSON"),
        ("c.json", "3", "must be JSON"),
    ],
)
def test_a_wrong_list_is_refused_by_name(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(UsageError, match=message) as caught:
        read_class_list(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_list_and_one_that_is_not_text_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none\.txt cannot be read"):
        read_class_list(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("étoile\nchat".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_class_list(tmp_path / "latin.txt")


def test_identical_name_objects_count_as_duplicates():
    with pytest.raises(UsageError, match="duplicates: 'a'"):
        make_class_list(["a", "b", "a"])


def test_labels_match_up_to_case_underscores_and_spaces():
    classes = make_class_list(["Sea Lion", "cat", "polar_bear"])
    assert match_labels(classes, ["cat", "polar bear", "sea_lion"]) == (1, 2, 0)


def test_a_mismatch_names_both_directions():
    classes = make_class_list(["cat", "dog", "emu"])
    with pytest.raises(UsageError, match=r"lacks: 'cow'; listed .* has: 'dog', 'emu'"):
        match_labels(classes, ["cat", "cow"])
    with pytest.raises(UsageError, match="no label has: 'emu'") as caught:
        match_labels(classes, ["cat", "dog"])
    assert "lacks" not in str(caught.value)


def test_a_superset_may_name_more_but_not_less():
    classes = make_class_list(["cat", "dog", "emu"])
    assert match_labels(classes, ["emu"], superset=True) == (2,)
    with pytest.raises(UsageError, match="lacks: 'cow'"):
        match_labels(classes, ["cow"], superset=True)


def test_long_mismatches_are_cut():
    with pytest.raises(UsageError, match=r"'c4' and 3 more"):
        match_labels(make_class_list(["a", "b"]), [f"c{i}" for i in range(8)])
