"""Cells side by side in processes of their own: the same results, named failures, no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tests.bench.small_grid import (
    base_config,
    cell_files,
    grid_config,
    rows_of,
    write_pictures,
    write_teachers,
)

from attar.bench.domains import run_domains
from attar.bench.jobs import Task, run_tasks, threads_of_each
from attar.bench.progress import Progress
from attar.errors import AttarError, UsageError
from attar.files import read_json
from attar.records import read_records
from attar.run import RunConfig, plain_options
from attar.stages.images import read_image_table

LR = 1e-3
PLAIN = {f"{m}/{d}/seed0-lr{LR:g}" for m in ("erm", "feature-mse") for d in ("art", "sketch")}
DIVERGING = "diverging/art/seed0-lr1e+30"
LONG = 600.0
"""Seconds that no process here takes, however busy the machine is."""


@dataclass(frozen=True)
class SideBySide:
    root: Path
    error: str

    @property
    def out(self) -> Path:
        return self.root / "out"


def small_base(root: Path) -> RunConfig:
    base = base_config(root)
    return replace(base, training=replace(base.training, steps=6, snapshots=2))


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SideBySide]:
    """Two methods and a variant that diverges, two domains, two processes; with an oracle."""
    root = tmp_path_factory.mktemp("jobs")
    write_pictures(root / "pictures")
    write_teachers(root)
    (root / "variants.yaml").write_text("diverging: {method: erm, training.lr: 1e30}")
    config = grid_config(
        root,
        lrs=(LR,),
        lr_domain="art",
        domains=("art", "sketch"),
        variants=root / "variants.yaml",
        strict_teacher=None,
        jobs=2,
        oracle=True,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # bits depend on the number of threads
        with pytest.raises(AttarError) as caught:
            run_domains(small_base(root), config, root / "out")
    yield SideBySide(root=root, error=str(caught.value))
    torch.set_num_threads(threads)


def test_a_cell_that_fails_is_named_and_stops_no_other(grid: SideBySide) -> None:
    log = grid.out / "cells" / f"{DIVERGING}.log"
    assert grid.error.startswith(f"cell {DIVERGING} failed: ")
    assert "the loss is nan" in grid.error
    assert f"(log: {log})" in grid.error
    assert "give the same command again" in grid.error
    assert "\n" not in grid.error
    assert set(cell_files(grid.out)) == PLAIN
    assert list(rows_of(grid.out / "table.md")) == ["teacher", "erm", "feature-mse"]
    # Without its trial a row has no learning rate, so its other cells must not be run.
    assert set(read_json(grid.out / "learning-rates.json")) == {"erm", "feature-mse"}
    assert not (grid.out / "cells" / "diverging" / "sketch").exists()


def test_each_cell_has_a_log_and_one_store_served_them_all(grid: SideBySide) -> None:
    for name in PLAIN:
        assert (grid.out / "cells" / f"{name}.log").is_file()
        assert (grid.out / "cells" / name / "done").is_file()
    texts = [(grid.out / "cells" / f"{name}.log").read_text() for name in PLAIN]
    assert sum("embedded 54 images" in text or "embedded 53 images" in text for text in texts) == 1


def test_the_images_are_decoded_once_for_the_whole_grid(grid: SideBySide, tmp_path: Path) -> None:
    known = (grid.out / "files.parquet").read_bytes()
    for name in PLAIN:
        assert (grid.out / "cells" / name / "files.parquet").read_bytes() == known
    task = Task(
        name="a", config=small_base(grid.root), run=tmp_path / "a", command="",
        known_files=grid.out / "files.parquet",
    )  # fmt: skip
    task.prepare()
    before = (tmp_path / "a" / "files.parquet").stat()
    table = read_image_table(task.config.data, None, tmp_path / "a")
    assert len(table) == 54
    after = (tmp_path / "a" / "files.parquet").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_cells_side_by_side_end_as_they_do_one_after_the_other(
    grid: SideBySide, tmp_path: Path
) -> None:
    config = grid_config(
        grid.root, methods=("feature-mse",), lrs=(LR,), lr_domain="sketch", domains=("sketch",),
        strict_teacher=None,
    )  # fmt: skip
    run_domains(small_base(grid.root), config, tmp_path / "out")
    name = f"feature-mse/sketch/seed0-lr{LR:g}"
    assert read_json(cell_files(grid.out)[name]) == read_json(cell_files(tmp_path / "out")[name])


def test_the_oracle_is_the_best_saved_checkpoint_on_the_held_out_domain(grid: SideBySide) -> None:
    records = read_records(grid.out / "results.jsonl")
    oracles = {(r.method, r.extra["held_out_domain"]): r for r in records if r.role == "oracle"}
    assert len(oracles) == len(PLAIN)
    for (method, domain), oracle in oracles.items():
        run = grid.out / "cells" / method / domain / f"seed0-lr{LR:g}"
        checkpoints = sorted((run / "evaluations" / "snapshots").iterdir())
        assert [path.name for path in checkpoints] == ["00000003", "00000006"]
        found = [
            record.metrics["acc1"]
            for place in (*checkpoints, run)
            for record in read_records(place / "results.jsonl")
            if (record.role, record.split, record.domain) == ("student", "held_out", "all")
            and record.task == "zeroshot_classification"
        ]
        assert len(found) == 3
        assert oracle.metrics["acc1"] == max(found)
        assert oracle.extra["checkpoints"] == 3
    assert "oracle mean" in rows_of(grid.out / "table.md")["erm"]


def test_the_oracle_outlives_the_run_folders(grid: SideBySide, tmp_path: Path) -> None:
    config = grid_config(
        grid.root, lrs=(LR,), lr_domain="art", domains=("art", "sketch"), strict_teacher=None,
        oracle=True,
    )  # fmt: skip
    table = (grid.out / "table.md").read_text()
    run_domains(small_base(grid.root), config, tmp_path / "elsewhere", grid.out)
    assert (grid.out / "table.md").read_text() == table


def test_an_oracle_without_saved_checkpoints_is_refused(grid: SideBySide, tmp_path: Path) -> None:
    config = grid_config(grid.root, oracle=True)
    with pytest.raises(UsageError, match=r"--oracle .* add --training\.snapshots N"):
        run_domains(base_config(grid.root), config, tmp_path / "out")


def test_killed_the_cells_die_too(grid: SideBySide, tmp_path: Path) -> None:
    base = small_base(grid.root)
    endless = replace(
        base,
        method="erm",
        teacher=None,
        splits=replace(base.splits, held_out_domain="art"),
        training=replace(base.training, steps=10**6, snapshots=0),
        references=False,
    )
    (tmp_path / "options.json").write_text(json.dumps(plain_options(endless)))
    program = (
        "import json, pathlib, sys; from attar.bench.jobs import Task, run_tasks;"
        "from attar.run import from_options; place = pathlib.Path(sys.argv[1]);"
        "config = from_options(json.loads((place / 'options.json').read_text()));"
        "tasks = [Task(name=n, config=config, run=place / n, command=n) for n in 'abc'];"
        "run_tasks(tasks, 2, print)"
    )
    grid_process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    try:
        runs = [tmp_path / name / "checkpoints" / "last" / "state.json" for name in "ab"]
        wait_until(lambda: all(run.exists() for run in runs))
        children = children_of(grid_process.pid)
        assert len(children) == 2
        assert not (tmp_path / "c").exists()
    finally:
        grid_process.send_signal(signal.SIGKILL)
        grid_process.wait()
    wait_until(lambda: not any(is_alive(child) for child in children))


def test_a_cell_that_the_system_killed_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    task = Task(name="a", config=base_config(tmp_path), run=tmp_path / "a", command="a")
    said: list[str] = []
    run_tasks([task], 1, lambda task, error: said.append(error))
    assert len(said) == 1
    assert said[0].startswith("killed by signal 9")
    assert "fewer --jobs" in said[0]


def wait_until(condition) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_the_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attar.bench.jobs.usable_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_of_each(jobs) for jobs in (1, 3, 16, 40)] == [16, 5, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_of_each(3) == 2
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_progress_says_how_many_are_done_and_how_long_the_rest_takes() -> None:
    now = [0.0]
    progress = Progress(10, clock=lambda: now[0])
    progress.found(["a", "b"])
    assert progress.text() == "2 of 10 cells"
    now[0] = 100.0
    progress.ended("c")
    progress.found(["a", "c"])  # seen again in the second stage
    assert progress.text() == "3 of 10 cells, about 12 min left"
    now[0] = 40000.0
    progress.ended("d")
    assert progress.text() == "4 of 10 cells, about 33.3 h left"
    for name in "efghij":
        progress.ended(name)
    assert progress.text() == "10 of 10 cells"


def test_no_less_than_one_job(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--jobs 0: give 1 or more"):
        grid_config(tmp_path, jobs=0)
