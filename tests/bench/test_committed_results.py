"""Finished cells outlive new options: what is committed is still taken for what it is."""

from pathlib import Path

import pytest

from attar.bench.cells import load_cell, load_cells, what_was_run
from attar.bench.table import read_table
from attar.files import read_json
from attar.run import from_options

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "unseen-domains-pacs"
CELLS = sorted((RESULTS / "cells").glob("*/*/seed*.json"))


@pytest.mark.parametrize("path", CELLS, ids=lambda path: "/".join(path.parts[-3:]))
def test_a_committed_cell_is_not_refused(path: Path) -> None:
    config = from_options({**read_json(path)["config"], "data": ["pacs"]})
    assert load_cell(path, what_was_run(config))


def test_the_committed_cells_make_a_table() -> None:
    assert CELLS
    table = read_table(load_cells(RESULTS / "cells"))
    assert table.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert {"erm", "vl2v-adip"} <= {row.name for row in table.rows}
    for row in table.rows:
        assert all(0 < value <= 100 for value in row.outside.values())
