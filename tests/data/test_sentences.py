"""Every file of sentences gives the same entries, line by line, and a broken one says where."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attar.data.sentences import read_entries, read_sentences
from attar.errors import UsageError

PLAIN = [("A cat.",), ("Two dogs.",), ("A cat.",)]


def test_every_format_gives_the_same_sentences(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffA cat.\r\n\n Two dogs. \nA cat.".encode())
    (tmp_path / "a.jsonl").write_text('"A cat."\n\n{"text": " Two dogs."}\n{"caption": "A cat."}\n')
    (tmp_path / "a.csv").write_text("path,caption\nx.jpg,A cat.\ny.jpg,\nz.jpg,Two dogs.\nw,A cat.")
    column = pa.array(["A cat.", None, "Two dogs.", "  ", "A cat."])
    pq.write_table(pa.table({"path": list("abcde"), "Text": column}), tmp_path / "a.parquet")
    for file in sorted(tmp_path.iterdir()):
        assert list(read_entries(file)) == PLAIN, file
        assert read_sentences(file) == ["A cat.", "Two dogs."]


def test_an_entry_may_have_several_texts(tmp_path: Path) -> None:
    lines = ['["A cat.", "A pet.", "A cat."]', '{"text": ["x", ""]}', '{"class": "guide_dog"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    entries = list(read_entries(tmp_path / "a.jsonl", lambda name: [f"{name}.", f"a {name}"]))
    assert entries == [("A cat.", "A pet."), ("x",), ("guide_dog.", "a guide_dog")]
    several = pa.array([["a", "b"], [], None, ["c"]])
    pq.write_table(pa.table({"caption": several}), tmp_path / "a.parquet")
    assert list(read_entries(tmp_path / "a.parquet")) == [("a", "b"), ("c",)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '"fine"\n{"text": 3}\n', "line 2.*no sentence"),
        ("a.jsonl", '"fine"\nnot json\n', "line 2 is not JSON"),
        ("a.jsonl", '"fine"\n["good", "half of \\ud83d"]\n', "line 2.*half a character"),
        ("a.jsonl", '{"class": "dog"}\n', "line 1.*no sentence"),
        ("a.csv", "path,label\nx,y\n", "no column text, caption or sentence.*path, label"),
        ("a.csv", "", "no column"),
        ("a.parquet", "no table", "cannot be read as Parquet"),
        ("a.txt", " \n\n", "holds no sentence"),
        ("a.txt", b"\xff\xfe\xff", "not UTF-8"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=rf"a\.\w+.*{says}"):
        list(read_entries(file))


def test_a_file_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    """The lines before a broken one come out: nothing waits for the end of the file."""
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(f"sentence {i}") for i in range(20_000)) + "\n{]\n")
    entries = read_entries(file)
    assert [next(entries) for _ in range(20_000)][-1] == ("sentence 19999",)
    with pytest.raises(UsageError, match="line 20001"):
        next(entries)
