"""`--splits.held-out-part in`: a grid that measures what DomainBed calls test_in."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.bench.small_grid import (
    CLASSES,
    PER_CLASS,
    base_config,
    grid_config,
    write_pictures,
    write_teachers,
)

from attar.bench.cells import load_cells
from attar.bench.domains import run_domains
from attar.data.domainbed import domainbed_split
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.records import read_records

WHOLE = len(CLASSES) * PER_CLASS
INNER = WHOLE - int(0.2 * WHOLE)


def test_only_the_in_part_is_measured_and_no_other_grid_mixes_in(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    write_teachers(tmp_path)
    whole = base_config(tmp_path)
    base = replace(whole, splits=replace(whole.splits, held_out_part="in"))
    grid = grid_config(
        tmp_path, methods=("erm",), lrs=(1e-3,), domains=("sketch",), lr_domain="sketch"
    )
    out = tmp_path / "out"
    run_domains(base, grid, out)

    records = [r for r in read_records(out / "results.jsonl") if r.domain == "all"]
    counts = {(r.role, r.split): r.num_images for r in records}
    assert counts["student", "held_out"] == counts["strict teacher", "held_out"] == INNER
    assert "test_in" in (out / "table.md").read_text(encoding="utf-8")

    images = ImageTable.load(out / "cells" / "erm" / "sketch" / "seed0-lr0.001" / "images.parquet")
    rows = zip(images.names, images.splits, strict=True)
    sketches = [(name, split) for name, split in rows if name.startswith("sketch/")]
    inner = set(domainbed_split(WHOLE, trial_seed=0, env_index=2)[0])
    for place, (_, split) in enumerate(sketches):
        assert split == ("held_out" if place in inner else None)

    with pytest.raises(UsageError, match="held_out_part in there, all asked"):
        run_domains(whole, grid, tmp_path / "again", out)
    assert load_cells(out / "cells", {("splits", "held_out_part"): "all"}) == []
    assert load_cells(out / "cells", {("splits", "held_out_part"): "in"})
