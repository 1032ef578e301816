"""The README's first table and its picture are of the results that are committed."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from attar.bench.table import cells, read_table
from attar.errors import UsageError
from attar.records import read_records

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "unseen-domains-pacs"
TABLE = read_table(read_records(RESULTS / "results.jsonl"))
assert len(TABLE.domains) == 4  # a grid that was asked for fewer writes a table of fewer
ROWS = {row.name: row for row in TABLE.rows}
SAID = {
    "teacher `pocket`": "teacher pocket (its head saw this domain)",
    "plain training (`erm`)": "erm",
    "`feature-mse`": "feature-mse",
    "`vl2v-adip` |": "vl2v-adip",
    "… with frozen BatchNorm |": "vl2v-adip+frozen-bn",
    "`rise`, frozen BatchNorm |": "rise+frozen-bn",
    "our entry": "attar-2026-11-23",
}
"""What a line of the README's table says -> the row of the results that it is of."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    file = ROOT / "scripts" / "domains_picture.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("words", SAID)
def test_the_first_table_says_what_was_measured(words: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = next(x for x in readme.splitlines() if x.startswith("|") and words in x)
    said = re.findall(r"(?<=\| )\**(\d[^|*]*?)\**(?= \|)", line)
    *domains, mean, _, inside = cells(TABLE, ROWS[SAID[words]])[:7]
    plain = [text.partition(" ")[0] for text in (*domains, inside)]
    assert said == [*plain[:4], mean, plain[4]]


def test_the_page_of_the_results_repeats_their_table() -> None:
    page = (ROOT / "docs" / "results" / "unseen-domains.md").read_text(encoding="utf-8")
    checked = set[str]()
    for line in page.partition("## One seed")[0].splitlines():
        named = re.match(r"\| \[?`([^`]+)`", line)
        if named:
            numbers = [text.strip().strip("*") for text in line.split("|")[2:-1]]
            assert numbers == cells(TABLE, ROWS[named[1]])
            checked.add(named[1])
    assert {"erm", "feature-mse", "vl2v-adip", "attar-2026-11-22", "attar-2026-11-23"} <= checked


def test_the_picture_is_of_the_committed_results(script: ModuleType, tmp_path: Path) -> None:
    committed = (ROOT / "docs" / "unseen-domains.svg").read_text(encoding="utf-8")
    assert script.source_of(RESULTS) in committed
    students = {name for name, row in ROWS.items() if row.role == "student"}
    names = [name for name in students if f">{name}<" in committed]
    assert {"erm", "vl2v-adip", "attar-2026-11-23"} <= set(names)
    for name in names:
        mean = cells(TABLE, ROWS[name])[len(TABLE.domains)].partition(" ")[0]
        assert f">{mean}<" in committed, name
    out = tmp_path / "again.svg"
    script.main(["--results", str(RESULTS), "--rows", *names, "--out", str(out)])
    assert out.read_text(encoding="utf-8").count("<use ") == committed.count("<use ")


def test_a_row_that_is_unknown_or_unfinished_is_not_drawn(
    script: ModuleType, tmp_path: Path
) -> None:
    words = ["--results", str(RESULTS), "--out", str(tmp_path / "picture.svg"), "--rows"]
    with pytest.raises(UsageError, match=r"unknown row 'ermm'.*erm"):
        script.main([*words, "ermm"])
    begun = {cell: value for cell, value in ROWS["erm"].outside.items() if cell[0] != "photo"}
    table = replace(TABLE, rows=(replace(ROWS["erm"], outside=begun),))
    with pytest.raises(UsageError, match="not been measured on every"):
        script.draw(table, ["erm"], tmp_path / "picture.svg", "")
    with pytest.raises(UsageError, match=r"no results\.jsonl"):
        script.main(["--results", str(tmp_path), *words[2:], "erm"])
    assert not (tmp_path / "picture.svg").exists()
