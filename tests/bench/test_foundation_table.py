"""scripts/foundation_table.py: what the table says follows from the cells that are there."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tests.bench.small_grid import rows_of

from attar.bench.cells import save_cell
from attar.evaluation.zero_shot import TASK as ZERO_SHOT
from attar.records import Record

SCRIPT = Path(__file__).parents[2] / "scripts" / "foundation_table.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("foundation_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record_of(role: str, accuracy: float) -> Record:
    return Record(
        model="m",
        pretrained="",
        dataset="d",
        task=ZERO_SHOT,
        split="test_ood",
        domain="sketch",
        role=role,
        num_images=4,
        metrics={"acc1": accuracy},
        extra={"num_classes": 4},
    )


def test_every_row_names_the_seeds_its_cells_have(script: ModuleType, tmp_path: Path) -> None:
    one, several = "(1, 0, 0), A", "feature-mse"
    places = ["--pacs", "p", "--imagenet-sample", "i", "--sentences", "s", "--out", str(tmp_path)]
    grid = script.Grid(options=script.read_options([*places, "--seeds", "0", "1", "2"]))
    for arm, seed, accuracy in ((one, 0, 0.5), (several, 0, 0.25), (several, 2, 0.75)):
        file = tmp_path / "cells" / f"{grid.cell(arm, seed)}.json"
        save_cell(file, {}, [record_of("student", accuracy)], {"arm": arm, "seed": seed})
    save_cell(tmp_path / "cells" / script.TEACHERS, {}, [record_of("teacher", 0.9)], {})
    table = script.tabulate(grid)
    rows = rows_of(tmp_path / "table.md")
    assert {name: row["seeds"] for name, row in rows.items()} == {
        "*chance*": "–",
        "teacher": "–",
        one: "0",
        several: "0, 2",
    }
    assert rows[several]["sketch, zero-shot"] == "50.0 ± 35.4"
    assert rows[one]["sketch, zero-shot"] == "50.0"
    assert "seeds" not in table.split("\n\n")[1]
