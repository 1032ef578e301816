"""Cells of unseen classes side by side: the same results, named failures, nothing run twice."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.bench.small_grid import CLASSES, base_config, rows_of, write_pictures
from tests.doubles import make_openclip_folder

from attar.bench.classes import run_classes
from attar.bench.config import ClassesConfig
from attar.data.splits import SplitConfig
from attar.errors import AttarError, UsageError
from attar.files import read_json
from attar.records import read_records
from attar.run import RunConfig
from attar.students.config import StudentConfig

COLOURS = {**CLASSES, "cyan": (30, 200, 220), "pink": (240, 120, 190), "yellow": (230, 220, 40)}
PROMPTS = "classification+prompts"
LRS = (1e-3, 1e-2)
PLAIN = {f"plain/seed{seed}/lr0.001" for seed in (0, 1)}
TRIALS = {f"{PROMPTS}/seed0/lr{lr:g}" for lr in LRS}
DIVERGING = "diverging/seed0/lr1e+30"


@dataclass(frozen=True)
class TwoGrids:
    root: Path
    errors: tuple[str, str]

    @property
    def alone(self) -> Path:
        return self.root / "jobs1"

    @property
    def beside(self) -> Path:
        return self.root / "jobs2"


def small_base(root: Path) -> RunConfig:
    base = base_config(root)
    return replace(
        base,
        splits=SplitConfig(val_fraction=0.2, test_fraction=0.2, unseen_share=0.5),
        training=replace(base.training, steps=2, batch_size=6, sampler="uniform"),
    )


def grid_config(root: Path, **changes: Any) -> ClassesConfig:
    options: dict[str, Any] = {
        "rows": (PROMPTS,),
        "variants": root / "variants.yaml",
        "seeds": (0, 1),
        "lrs": LRS,
    }
    return ClassesConfig(**(options | changes))


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoGrids]:
    """A row with two rates, a variant and one that diverges; two seeds; by one and by two."""
    root = tmp_path_factory.mktemp("classes-jobs")
    write_pictures(root / "pictures", COLOURS)
    make_openclip_folder(root / "teacher", embed_dim=32, image_size=32, context_length=16)
    plain = "plain: {method: feature-mse, training.lr: 1e-3}\n"
    (root / "plain.yaml").write_text(plain)
    (root / "variants.yaml").write_text(plain + "diverging: {method: erm, training.lr: 1e30}\n")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    errors = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # bits depend on the number of threads
        for jobs in (1, 2):
            with pytest.raises(AttarError) as caught:
                run_classes(small_base(root), grid_config(root, jobs=jobs), root / f"jobs{jobs}")
            errors.append(str(caught.value))
    yield TwoGrids(root=root, errors=(errors[0], errors[1]))
    torch.set_num_threads(threads)


def cells_of(results: Path) -> dict[str, Path]:
    """Name -> results file of every finished cell."""
    folder = results / "cells"
    found = sorted(folder.glob("*/seed*/lr*.json"))
    return {path.relative_to(folder).as_posix().removesuffix(".json"): path for path in found}


def untimed(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a cell without how long its training took."""
    for record in cell["records"]:
        assert record["extra"].pop("training_seconds") > 0
    return cell


def wanted_cells(results: Path) -> set[str]:
    chosen = read_json(results / "learning-rates.json")[PROMPTS]["chosen"]
    return PLAIN | TRIALS | {f"{PROMPTS}/seed1/lr{chosen:g}"}


def test_cells_side_by_side_end_as_they_do_one_after_the_other(grids: TwoGrids) -> None:
    alone, beside = cells_of(grids.alone), cells_of(grids.beside)
    assert set(beside) == wanted_cells(grids.beside) == set(alone)
    for name, path in alone.items():
        assert untimed(read_json(beside[name])) == untimed(read_json(path))
        assert (grids.beside / "cells" / f"{name}.log").is_file()
        assert not (grids.alone / "cells" / f"{name}.log").exists()
    rates = [read_json(out / "learning-rates.json") for out in (grids.alone, grids.beside)]
    assert rates[0] == rates[1]
    assert set(rates[0][PROMPTS]["seen_validation"]) == {f"{lr:g}" for lr in LRS}


def test_two_rows_of_two_seeds_are_in_the_table(grids: TwoGrids) -> None:
    chosen = read_json(grids.beside / "learning-rates.json")
    records = read_records(grids.beside / "results.jsonl")
    assert {(r.extra["row"], r.extra["seed"], r.extra["lr"]) for r in records} == {
        (row, seed, chosen[row]["chosen"]) for row in (PROMPTS, "plain") for seed in (0, 1)
    }
    first = grids.root / "first.md"
    first.write_text((grids.beside / "table.md").read_text().split("\n\n")[0])
    rows = rows_of(first)
    assert list(rows) == ["chance", "teacher", PROMPTS, "plain"]
    assert all("±" in rows[row]["unseen classes"] for row in (PROMPTS, "plain"))


def test_a_cell_that_fails_is_named_and_stops_no_other(grids: TwoGrids) -> None:
    for error in grids.errors:
        assert error.startswith(f"cell {DIVERGING} failed (and 1 more cells): the loss is nan")
        assert "give the same command again" in error
        assert "\n" not in error
    assert f"(log: {grids.beside / 'cells' / DIVERGING}.log)" in grids.errors[1]


def test_cells_share_a_store_and_what_is_known_of_the_files(grids: TwoGrids) -> None:
    known = (grids.beside / "files.parquet").read_bytes()
    texts = []
    for name in cells_of(grids.beside):
        run = grids.beside / "cells" / name
        assert (run / "files.parquet").read_bytes() == known
        assert not (run / "store").exists()
        texts.append((run.parent / f"{run.name}.log").read_text())
    assert sum(" images: " in text and "embedded " in text for text in texts) == 1


def test_started_again_only_what_is_missing_is_run(grids: TwoGrids, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name, path in cells_of(grids.beside).items():  # and no run folder
        target = results / "cells" / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (lost,) = wanted_cells(grids.beside) - PLAIN - TRIALS
    before = untimed(read_json(cells_of(results)[lost]))
    cells_of(results)[lost].unlink()
    config = grid_config(grids.root, variants=grids.root / "plain.yaml")
    run_classes(small_base(grids.root), config, tmp_path / "out", results)
    ran = {path.parent for path in (tmp_path / "out" / "cells").rglob("done")}
    assert ran == {tmp_path / "out" / "cells" / lost}
    assert untimed(read_json(cells_of(results)[lost])) == before
    assert set(cells_of(results)) == set(cells_of(grids.beside))


def test_a_row_whose_rate_cannot_be_chosen_is_neither_run_nor_shown(
    grids: TwoGrids, tmp_path: Path
) -> None:
    def shown() -> set[tuple[str, int]]:
        records = read_records(tmp_path / "results.jsonl")
        return {(r.extra["row"], r.extra["seed"]) for r in records}

    base, plain = small_base(grids.root), grids.root / "plain.yaml"
    config = grid_config(
        grids.root, rows=("classification",), variants=plain, lrs=LRS[:1], seeds=(0,)
    )
    run_classes(base, config, tmp_path)
    assert shown() == {("classification", 0), ("plain", 0)}
    config = replace(config, lrs=(LRS[0], 1e30), seeds=(0, 1))
    with pytest.raises(AttarError, match=r"^cell classification/seed0/lr1e\+30 failed: "):
        run_classes(base, config, tmp_path)
    assert set(cells_of(tmp_path)) == {f"classification/seed0/lr{LRS[0]:g}", *PLAIN}
    assert not (tmp_path / "cells" / "classification" / "seed1").exists()
    assert shown() == {("plain", 0), ("plain", 1)}


def test_what_no_cell_of_a_row_could_do_is_refused(grids: TwoGrids, tmp_path: Path) -> None:
    base = replace(small_base(grids.root), student="teacher", student_config=StudentConfig())
    config = grid_config(grids.root, rows=("closed-set",), methods=("simkd",), variants=None)
    with pytest.raises(UsageError, match=r"give --student\.projector linear"):
        run_classes(base, config, tmp_path)


def test_no_cells_at_once_is_refused() -> None:
    with pytest.raises(UsageError, match="--jobs 0: give 1 or more"):
        ClassesConfig(jobs=0)
