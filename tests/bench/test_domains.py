"""A whole grid of held-out domains, run for real, then gone on with in every way."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tests.bench.small_grid import (
    CLASSES,
    COPY,
    DOMAINS,
    LRS,
    METHODS,
    PER_CLASS,
    FinishedGrid,
    base_config,
    cell_files,
    grid_config,
    rows_of,
    write_pictures,
    write_teachers,
)

from attar import pipeline
from attar.bench.domains import run_domains
from attar.data.domainbed import make_domainbed_splits
from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.files import read_json, sha256_file, write_json
from attar.records import read_records
from attar.run import from_options
from attar.students.config import StudentConfig
from attar.training import feed

TEACHER_ROW = "teacher"
STRICT_ROW = "strict teacher (never saw this domain)"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedGrid]:
    """Two methods, two learning rates, three domains, run once; training's reads are noted."""
    root = tmp_path_factory.mktemp("grid")
    write_pictures(root / "pictures")
    write_teachers(root)
    done = FinishedGrid(root=root, trained_on={})
    current: list[str] = []
    distill, read_image = pipeline.distill, feed.read_image

    def noting_distill(config: object, out: Path, **rest: object) -> Path:
        current[:] = [str(out.relative_to(done.out / "cells"))]
        done.trained_on[current[0]] = set()
        return distill(config, out, **rest)

    def noting_read(path: str) -> object:
        name = Path(path).relative_to(root / "pictures").as_posix()
        done.trained_on[current[0]].add(name)
        return read_image(path)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "distill", noting_distill)
        patch.setattr(feed, "read_image", noting_read)
        run_domains(base_config(root), grid_config(root), done.out)
    yield done
    torch.set_num_threads(threads)


@pytest.fixture
def results(grid: FinishedGrid, tmp_path: Path) -> Path:
    """The results of all cells and nothing else: no run folder, no store, no table."""
    folder = tmp_path / "results"
    for path in [*cell_files(grid.out).values(), *grid.out.glob("cells/strict-teacher/*.json")]:
        target = folder / path.relative_to(grid.out)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def correct_of(run: Path, role: str, split: str) -> dict[str, list[bool]]:
    """Return label -> whether each image was put into its class, from the predictions."""
    found: dict[str, list[bool]] = {}
    for row in pq.read_table(run / "predictions" / f"{role}-{split}.parquet").to_pylist():
        assert row["correct"] == (row["label"] == row["prediction"])
        found.setdefault(row["label"], []).append(row["correct"])
    return found


def acc1_of(run: Path, role: str, split: str) -> float:
    return float(np.mean([one for of in correct_of(run, role, split).values() for one in of]))


def run_accuracies(grid: FinishedGrid, method: str) -> np.ndarray:
    """[domains] in %."""
    runs = [run_of(grid, method, domain) for domain in DOMAINS]
    return np.array([100 * acc1_of(run, "student", "held_out") for run in runs])


def recall_of(run: Path) -> float:
    return float(np.mean([np.mean(of) for of in correct_of(run, "student", "val").values()]))


def chosen_of(results: Path) -> dict[str, float]:
    noted = read_json(results / "learning-rates.json")
    return {method: entry["chosen"] for method, entry in noted.items()}


def run_of(grid: FinishedGrid, method: str, domain: str) -> Path:
    return grid.out / "cells" / method / domain / f"seed0-lr{chosen_of(grid.out)[method]:g}"


def test_the_learning_rate_is_chosen_once_on_source_validation_images(grid: FinishedGrid) -> None:
    noted = read_json(grid.out / "learning-rates.json")
    assert list(noted) == sorted(METHODS)
    for method in METHODS:
        folder = grid.out / "cells" / method / "photo"
        recalls = {lr: recall_of(folder / f"seed0-lr{lr:g}") for lr in LRS}
        assert noted[method]["held_out_domain"] == "photo"
        assert noted[method]["source_validation"] == pytest.approx(
            {f"{lr:g}": recall for lr, recall in recalls.items()}
        )
        assert recalls[noted[method]["chosen"]] == max(recalls.values())
    other = {f"{m}/{d}/seed0-lr{lr:g}" for m, lr in chosen_of(grid.out).items() for d in DOMAINS}
    tried = {f"{method}/photo/seed0-lr{lr:g}" for method in METHODS for lr in LRS}
    assert set(cell_files(grid.out)) == set(grid.trained_on) == other | tried


def test_the_table_holds_what_the_predictions_say(grid: FinishedGrid) -> None:
    rows = rows_of(grid.out / "table.md")
    assert list(rows) == [TEACHER_ROW, STRICT_ROW, *METHODS]
    for method in METHODS:
        runs = [run_of(grid, method, domain) for domain in DOMAINS]
        for role, row in (("student", method), ("teacher", TEACHER_ROW)):
            if role == "teacher" and method == "erm":
                continue  # nobody asked it
            values = [100 * acc1_of(run, role, "held_out") for run in runs]
            inside = [100 * acc1_of(run, role, "val") for run in runs]
            wanted = [*values, np.mean(values), min(values), np.mean(inside)]
            assert list(rows[row]) == [*DOMAINS, "mean", "worst", "in-domain", "minus erm [95 %]"]
            assert list(rows[row].values())[:-1] == [f"{value:.1f}" for value in wanted]
    erm, other = (run_accuracies(grid, method) for method in METHODS)
    assert rows["feature-mse"]["minus erm [95 %]"].startswith(f"{np.mean(other - erm):+.1f} [")


def test_the_results_are_those_of_the_chosen_learning_rates(grid: FinishedGrid) -> None:
    records = read_records(grid.out / "results.jsonl")
    chosen = chosen_of(grid.out)
    trained = [record for record in records if record.role != "strict teacher"]
    assert {
        (r.extra["method"], r.extra["held_out_domain"], r.extra["seed"], r.extra["lr"])
        for r in trained
    } == {(method, domain, 0, chosen[method]) for method in METHODS for domain in DOMAINS}
    for method in METHODS:
        for domain in DOMAINS:
            of_cell = [
                replace(record, extra={}, pretrained="")
                for record in trained
                if (record.extra["method"], record.extra["held_out_domain"]) == (method, domain)
            ]
            own = read_records(run_of(grid, method, domain) / "results.jsonl")
            assert of_cell == [replace(record, extra={}, pretrained="") for record in own]


def test_the_strict_teacher_is_measured_on_the_whole_held_out_domain(grid: FinishedGrid) -> None:
    records = read_records(grid.out / "results.jsonl")
    strict = [r for r in records if r.role == "strict teacher" and r.domain == "all"]
    assert [r.extra["held_out_domain"] for r in strict] == list(DOMAINS)
    for record in strict:
        assert (record.split, record.num_images) == ("held_out", len(CLASSES) * PER_CLASS)
        domain = record.extra["held_out_domain"]
        # The same weights as the teacher's, under another name: the same answers.
        same = acc1_of(run_of(grid, "feature-mse", domain), "teacher", "held_out")
        assert record.metrics["acc1"] == pytest.approx(same)


def test_no_cell_trains_or_selects_on_its_held_out_domain(grid: FinishedGrid) -> None:
    pictures = grid.root / "pictures"
    for cell, names in grid.trained_on.items():
        held_out = cell.split("/")[1]
        table = ImageTable.load(grid.out / "cells" / cell / "images.parquet")
        splits = make_domainbed_splits(table, held_out, trial_seed=0)
        assert names == set(splits.source.train.names), cell
        assert not {name for name in names if name.startswith(f"{held_out}/")}
        secret = {sha256_file(path) for path in (pictures / held_out).rglob("*.png")}
        assert not secret & {sha256_file(pictures / name) for name in names}
        predictions = grid.out / "cells" / cell / "predictions"
        val = set(pq.read_table(predictions / "student-val.parquet")["name"].to_pylist())
        assert val == set(splits.source.val.names)
        assert not {name for name in val if name.startswith(f"{held_out}/")}
        assert not val & names
        tested = pq.read_table(predictions / "student-held_out.parquet")["name"].to_pylist()
        assert sorted(tested) == sorted(
            path.relative_to(pictures).as_posix() for path in (pictures / held_out).rglob("*.png")
        )


def test_a_copy_of_a_held_out_image_is_left_out_of_training(grid: FinishedGrid) -> None:
    in_art, in_sketch = COPY
    for cell, names in grid.trained_on.items():
        held_out = cell.split("/")[1]
        # Both are among the images that are trained on when their twin is not held out.
        assert (in_art in names) == (held_out == "photo"), cell
        assert (in_sketch in names) == (held_out == "photo"), cell


def times_of(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in (folder / "cells").rglob("*") if p.is_file()}


def test_run_again_it_does_nothing(grid: FinishedGrid, ran: list[str]) -> None:
    before, table = times_of(grid.out), (grid.out / "table.md").read_text()
    (grid.out / "table.md").unlink()
    assert run_domains(base_config(grid.root), grid_config(grid.root), grid.out) == grid.out
    assert times_of(grid.out) == before
    assert ran == []
    assert (grid.out / "table.md").read_text() == table


def test_only_the_missing_cell_is_run_again_and_ends_the_same(
    grid: FinishedGrid, ran: list[str], tmp_path: Path
) -> None:
    out = shutil.copytree(grid.out, tmp_path / "out")
    name = f"feature-mse/sketch/seed0-lr{chosen_of(out)['feature-mse']:g}"
    lost = cell_files(out)[name]
    before = read_json(lost)
    lost.unlink()
    shutil.rmtree(lost.with_suffix(""))
    times, table = times_of(out), (out / "table.md").read_text()
    run_domains(base_config(grid.root), grid_config(grid.root), out)
    assert ran == [name]
    assert read_json(lost) == before
    after = times_of(out)
    assert {path: after[path] for path in times} == times
    assert (out / "table.md").read_text() == table


def test_results_stand_for_their_cells_without_the_run_folders(
    grid: FinishedGrid, ran: list[str], results: Path, tmp_path: Path
) -> None:
    base, config = base_config(grid.root), grid_config(grid.root)
    assert run_domains(base, config, tmp_path / "elsewhere", results) == results
    assert ran == []
    assert not (tmp_path / "elsewhere" / "cells").exists()
    for name in ("table.md", "results.jsonl", "learning-rates.json"):
        assert (results / name).read_text() == (grid.out / name).read_text()


def test_held_out_images_have_no_say_in_the_learning_rate(
    grid: FinishedGrid, ran: list[str], results: Path, tmp_path: Path
) -> None:
    for lr, inside, outside in ((LRS[0], 0.25, 1.0), (LRS[1], 0.5, 0.0)):
        path = cell_files(results)[f"erm/photo/seed0-lr{lr:g}"]
        cell = read_json(path)
        for record in cell["records"]:
            value = inside if record["split"] == "val" else outside
            record["metrics"] = dict.fromkeys(record["metrics"], value)
        write_json(path, cell)
    only = grid_config(grid.root, methods=("erm",), domains=("photo",), strict_teacher=None)
    run_domains(base_config(grid.root), only, tmp_path / "elsewhere", results)
    assert ran == []
    assert read_json(results / "learning-rates.json") == {
        "erm": {
            "held_out_domain": "photo",
            "source_validation": {f"{LRS[0]:g}": 0.25, f"{LRS[1]:g}": 0.5},
            "chosen": LRS[1],
        }
    }
    assert rows_of(results / "table.md")["erm"]["photo"] == "0.0"


def test_a_domain_that_only_the_rates_were_chosen_on_is_no_column(
    grid: FinishedGrid, ran: list[str], results: Path, tmp_path: Path
) -> None:
    assert grid_config(grid.root).lr_domain == "photo"
    part = grid_config(grid.root, domains=("art", "sketch"))
    run_domains(base_config(grid.root), part, tmp_path / "elsewhere", results)
    assert ran == []
    assert chosen_of(results) == chosen_of(grid.out)
    rows, whole = rows_of(results / "table.md"), rows_of(grid.out / "table.md")
    for name, row in rows.items():
        assert list(row)[:3] == ["art", "sketch", "mean"]
        assert row["art"] == whole[name]["art"]
    found = read_records(results / "results.jsonl")
    assert {record.extra["held_out_domain"] for record in found} == {"art", "sketch"}


def test_a_call_with_fewer_domains_keeps_the_others_of_the_table(
    grid: FinishedGrid, ran: list[str], results: Path, tmp_path: Path
) -> None:
    shutil.copy(grid.out / "results.jsonl", results)
    part = grid_config(grid.root, domains=("art",))
    run_domains(base_config(grid.root), part, tmp_path / "elsewhere", results)
    assert ran == []
    whole = rows_of(grid.out / "table.md")
    assert "photo" in whole["erm"]
    assert rows_of(results / "table.md") == whole


def test_cells_of_another_grid_are_no_rows_of_this_one(
    grid: FinishedGrid, ran: list[str], results: Path, tmp_path: Path
) -> None:
    (cell,) = (results / "cells/feature-mse/art").glob(
        f"seed0-lr{chosen_of(grid.out)['feature-mse']:g}.json"
    )
    shutil.copy(grid.out / "learning-rates.json", results)
    text = cell.read_text()
    assert '"steps": 3' in text
    cell.write_text(text.replace('"steps": 3', '"steps": 5000'))
    run_domains(base_config(grid.root), grid_config(grid.root, methods=("erm",)), tmp_path, results)
    rows, whole = rows_of(results / "table.md"), rows_of(grid.out / "table.md")
    assert rows["erm"]["art"] == whole["erm"]["art"]
    assert rows["feature-mse"]["sketch"] == whole["feature-mse"]["sketch"]
    assert rows["feature-mse"]["art"] == "–"
    assert ran == []


def test_each_held_out_domain_may_have_its_own_teacher(grid: FinishedGrid, tmp_path: Path) -> None:
    spec = f"local-dir:{grid.root}/strict-{{domain}}"
    base = replace(base_config(grid.root), teacher=spec)
    changes = {"domains": ("art", "sketch"), "lr_domain": "art", "lrs": LRS[:1]}
    config = grid_config(grid.root, strict_teacher=None, **changes)
    results = run_domains(base, config, tmp_path)
    for domain in ("art", "sketch"):
        own = spec.format(domain=domain)
        (run,) = (tmp_path / "cells" / "feature-mse" / domain).glob("*/config.yaml")
        said = from_options(yaml.safe_load(run.read_text()))
        assert said.teacher == own
        assert said.store is not None
        assert domain in said.store.name
    rows = rows_of(results / "table.md")
    assert list(rows) == [TEACHER_ROW, *METHODS]  # one row of all its teachers
    assert all(row["art"] != "–" != row["sketch"] for row in rows.values())

    wrong = replace(base, teacher=f"local-dir:{grid.root}/strict-{{place}}")
    with pytest.raises(UsageError, match=r"write {domain} where the domain's name goes"):
        run_domains(wrong, config, tmp_path / "wrong")
    missing = replace(base, teacher=f"local-dir:{grid.root}/stern-{{domain}}")
    with pytest.raises(UsageError, match="stern-art"):
        run_domains(missing, config, tmp_path / "missing")
    with pytest.raises(UsageError, match="leave --store out"):
        run_domains(replace(base, store=tmp_path / "store"), config, tmp_path / "stored")


def test_an_unforeseen_failure_stops_no_other_cell(
    grid: FinishedGrid, ran: list[str], tmp_path: Path
) -> None:
    lr = LRS[0]
    config = grid_config(
        grid.root, methods=("erm",), lrs=(lr,), lr_domain="art", domains=("art", "sketch"),
        strict_teacher=None,
    )  # fmt: skip
    # Nobody foresees a folder where a file should be.
    name = f"erm/sketch/seed0-lr{lr:g}"
    (tmp_path / "cells" / name / "command.txt" / "there").mkdir(parents=True)
    config = replace(config, seeds=(0, 1))
    with pytest.raises(AttarError) as caught:
        run_domains(base_config(grid.root), config, tmp_path)
    log = tmp_path / "cells" / f"{name}.log"
    assert str(caught.value).startswith(f"cell {name} failed: IsADirectoryError: ")
    assert f"(log: {log})" in str(caught.value)
    assert not isinstance(caught.value, UsageError)
    assert "Traceback" in log.read_text()
    assert set(cell_files(tmp_path)) == {
        f"erm/{d}/seed{s}-lr{lr:g}" for d in ("art", "sketch") for s in (0, 1)
    } - {name}
    assert ran[-1] != name


def test_results_of_another_configuration_are_refused_before_anything_runs(
    grid: FinishedGrid, ran: list[str], results: Path, tmp_path: Path
) -> None:
    base = base_config(grid.root)
    other = replace(
        base,
        training=replace(base.training, steps=4),
        student_config=StudentConfig(image_size=48, weights="none"),
    )
    # A method without results stands first: it must not be run before the others are refused.
    config = grid_config(grid.root, methods=("vl2v-adip", *METHODS))
    with pytest.raises(UsageError) as refused:
        run_domains(other, config, tmp_path / "elsewhere", results)
    message = str(refused.value)
    assert str(cell_files(results)[f"erm/photo/seed0-lr{LRS[0]:g}"]) in message
    assert "student.image_size 32 there, 48 asked; training.steps 3 there, 4 asked" in message
    assert "choose another --results" in message
    assert ran == []
