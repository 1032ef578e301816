"""scripts/scenes_table.py at tiny sizes: the table follows from the runs and goes on from cells."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from tests.doubles import make_openclip_folder

from attar import pipeline
from attar.errors import UsageError
from attar.files import read_json
from attar.records import read_records

SCRIPT = Path(__file__).parents[2] / "scripts" / "scenes_table.py"
TINY = {
    "student": "mobilenetv3_small_050",
    "weights": "none",
    "image-size": 32,
    "batch-size": 6,
    "steps": 1,
    "few-shot-steps": 1,
    "workers": 0,
    "train": 14,
    "few-shot": 4,
    "test": 24,
    "concepts": 10,
    "size": 48,
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scenes_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(folder: Path, **changes: object) -> list[str]:
    options = {**TINY, "teacher": f"local-dir:{folder / 'teacher'}", "out": folder / "out"}
    options |= {"results": folder / "results", **changes}
    return [str(word) for name, value in options.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, script: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("table")
    make_openclip_folder(folder / "teacher", embed_dim=16, image_size=32, context_length=24)
    script.main(words(folder))
    return folder


def cells_of(folder: Path, row: str) -> list[list[str]]:
    """Return a row's cells in each of the parts of the table."""
    lines = (folder / "results" / "table.md").read_text().splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[1:] for cells in split if cells[0] == row]


def test_the_table_says_what_the_runs_measured(folder: Path, script: ModuleType) -> None:
    for row in script.ROWS:
        name = script.name_of(row)
        for metric, cells in zip(script.METRICS, cells_of(folder, row), strict=True):
            for number, (split, group) in enumerate(script.COLUMNS):
                expected = []
                for stage in script.STAGES:
                    path = folder / "out" / "runs" / name / stage / "results.jsonl"
                    values = [
                        record.metrics[metric]
                        for record in read_records(path)
                        if (record.split, record.extra["labels"]) == (split, group)
                    ]
                    expected.append(f"{100 * values[0]:.1f}" if values else "–")
                assert cells[2 * number] == " / ".join(expected)
    assert cells_of(folder, "closed-set")[0][4].startswith("– / ")
    assert cells_of(folder, "+ descriptions")[1][5] == "11.7 / 50.7"


def test_the_rows_differ_in_what_they_name(folder: Path) -> None:
    runs = folder / "out" / "runs"
    texts = [
        read_json(runs / row / "zero-shot" / "classes.json")["texts"][0]
        for row in ("classification", "image-contrastive", "descriptions")
    ]
    assert texts[0] == texts[1] != texts[2]
    terms = [
        json.loads((runs / row / "few-shot" / "metrics.jsonl").read_text().splitlines()[0])
        for row in ("classification", "image-contrastive")
    ]
    assert ["term/image_contrastive" in line for line in terms] == [False, True]


def test_answers_that_look_at_no_image(folder: Path) -> None:
    nothing, everything = (
        cells_of(folder, f"*{r}*")[0] for r in ("no label at all", "every label")
    )
    for column in (0, 2, 4):
        assert float(nothing[column]) + float(everything[column]) == pytest.approx(100, abs=0.11)
    assert cells_of(folder, "*no label at all*")[1][::2] == ["0.0"] * 3


def test_it_goes_on_from_its_cells_alone(
    folder: Path, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "results", tmp_path / "results")
    before = (folder / "results" / "table.md").read_bytes()
    (tmp_path / "results" / "table.md").unlink()
    stored = sorted((tmp_path / "results" / "cells").rglob("*.json"))
    assert len(stored) == 8
    teacher = f"local-dir:{folder / 'teacher'}"
    for path in stored:
        assert str(folder) not in path.read_text().replace(teacher, "")  # no places
    monkeypatch.setattr(pipeline, "distill", None)  # would fail when called
    again = {"results": tmp_path / "results", "scenes": folder / "out" / "scenes"}
    script.main(words(folder, out=tmp_path / "out", **again))
    assert (tmp_path / "results" / "table.md").read_bytes() == before
    with pytest.raises(UsageError, match=r"training\.steps 1 there, 2 asked"):
        script.main(words(folder, out=tmp_path / "out", **again, steps=2))
