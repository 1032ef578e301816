"""A run that was killed and started again ends as an unbroken one, bit for bit."""

import json
import multiprocessing
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import (
    ScaledMSE,
    class_features,
    make_feed,
    make_student,
    project,
    resumable_config,
    run_two_phases,
    two_phases,
)
from tests.dead_workers import Killer

from attar.errors import AttarError, UsageError
from attar.training.loop import train
from attar.types import Loss


def kill_in_process(images: Path, run: Path, workers: int, at: int) -> None:
    """Run in a process of its own that is killed (SIGKILL) in its forward pass number `at`."""
    forked = multiprocessing.get_context("fork").Process(
        target=run_two_phases, args=(images, run, workers, at)
    )
    forked.start()
    forked.join()
    assert forked.exitcode == -signal.SIGKILL


def stop_in_step(images: Path, run: Path, step: int) -> None:
    """Break the run off in the forward pass of a step (from 1), as an exception would."""
    config = resumable_config(workers=0)
    phases = two_phases()
    phases[0].objective.fail_at = step
    with pytest.raises(InterruptedError):
        train(
            make_student(),
            phases,
            make_feed(images, config),
            class_features(),
            config,
            run,
            validate=project,
        )


def lines(run: Path, split: str | None = None) -> list[dict]:
    everything = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in everything if split is None or line["split"] == split]


def without_clock(run: Path) -> list[dict]:
    clock = {"time", "images_per_s", "data_wait"}
    return [{k: v for k, v in line.items() if k not in clock} for line in lines(run)]


def state_of(run: Path) -> dict:
    return json.loads((run / "checkpoints/last/state.json").read_text())


def assert_same_result(one: Path, other: Path) -> None:
    for file in ("student/model.safetensors", "objective.safetensors"):
        expected, found = load_file(one / file), load_file(other / file)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(value, found[name]), f"{file}: {name}"
    assert without_clock(one) == without_clock(other)


@pytest.fixture(scope="module")
def unbroken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken")
    run_two_phases(images, run, workers=0)
    return run


# Eleven steps, the second phase from step 6; checkpoints after 2, 3, 4, 5, 6, 8, 9 and 10.
@pytest.mark.parametrize(("workers", "killed_in", "kept"), [(0, 4, 3), (2, 8, 6)])
def test_a_killed_run_ends_as_an_unbroken_one(
    images: Path, unbroken: Path, tmp_path: Path, workers: int, killed_in: int, kept: int
) -> None:
    kill_in_process(images, tmp_path, workers, killed_in)
    assert state_of(tmp_path)["step"] == kept
    run_two_phases(images, tmp_path, workers)
    assert_same_result(unbroken, tmp_path)


@pytest.mark.parametrize("stopped_in", [1, 5, 6, 11])
def test_a_stopped_run_goes_on_at_any_step(
    images: Path, unbroken: Path, tmp_path: Path, stopped_in: int
) -> None:
    stop_in_step(images, tmp_path, stopped_in)
    run_two_phases(images, tmp_path, workers=0)
    assert_same_result(unbroken, tmp_path)


def test_metrics_hold_each_step_once_and_in_order(images: Path, tmp_path: Path) -> None:
    stop_in_step(images, tmp_path, 8)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "phase": "distill", "split": "train"}\n{"step": 9, "ph')
    run_two_phases(images, tmp_path, workers=0)
    assert [line["step"] for line in lines(tmp_path, "train")] == [2, 4, 5, 6, 8, 10, 11]
    assert [line["step"] for line in lines(tmp_path, "val")] == [0, 3, 5, 5, 6, 9, 11]


def test_a_crash_between_two_renames_is_undone(
    images: Path, unbroken: Path, tmp_path: Path
) -> None:
    stop_in_step(images, tmp_path, 8)
    last = tmp_path / "checkpoints/last"
    last.rename(last.with_name(".last.old"))
    (last.parent / ".last.partial").mkdir()
    run_two_phases(images, tmp_path, workers=0)
    assert_same_result(unbroken, tmp_path)


def test_a_finished_run_returns_at_once(images: Path, unbroken: Path) -> None:
    model = unbroken / "student/model.safetensors"
    before = model.stat().st_mtime_ns
    phases = two_phases()
    config = resumable_config(workers=0)
    arguments = (phases, make_feed(images, config), None, config, unbroken, project)
    assert train(make_student(), *arguments) == unbroken / "student"
    assert phases[0].objective.calls == 0
    assert model.stat().st_mtime_ns == before


def test_a_folder_of_another_run_is_refused(images: Path, unbroken: Path) -> None:
    config = resumable_config(workers=0)
    arguments = (two_phases(4, 7), make_feed(images, config), None, config, unbroken, project)
    with pytest.raises(UsageError, match=r"\{'align': 5.*not \{'align': 4"):
        train(make_student(), *arguments)


def test_a_damaged_checkpoint_is_named(images: Path, tmp_path: Path) -> None:
    stop_in_step(images, tmp_path, 8)
    file = tmp_path / "checkpoints/last/student.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(AttarError, match=r"student\.safetensors is damaged"):
        run_two_phases(images, tmp_path, workers=0)


@pytest.mark.parametrize("kept", [0.5, 0.01, 0.0])
def test_a_damaged_optimizer_is_named_and_the_way_out_is_one(
    images: Path, unbroken: Path, tmp_path: Path, kept: float
) -> None:
    stop_in_step(images, tmp_path, 8)
    file = tmp_path / "checkpoints/last/optimizer.pt"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    told = r"optimizer\.pt is damaged .*; delete .*/checkpoints and run again"
    with pytest.raises(AttarError, match=told):
        run_two_phases(images, tmp_path, workers=0)
    if not kept:
        shutil.rmtree(tmp_path / "checkpoints")
        run_two_phases(images, tmp_path, workers=0)
        assert_same_result(unbroken, tmp_path)


def test_a_worker_that_dies_in_a_step_is_named_and_training_goes_on(
    images: Path, unbroken: Path, tmp_path: Path
) -> None:
    killer, run = Killer(), tmp_path / "run"

    class Struck(ScaledMSE):
        def forward(self, *arguments: Any, **named: Any) -> Loss:
            if self.calls == 4:
                killer.strike()
            return super().forward(*arguments, **named)

    objective = Struck()
    struck = tuple(replace(phase, objective=objective) for phase in two_phases())
    config = resumable_config(workers=1)
    with pytest.raises(AttarError, match=r"reads images died .* fewer --training.workers"):
        train(
            make_student(),
            struck,
            make_feed(images, config),
            class_features(),
            config,
            run,
            validate=project,
        )
    run_two_phases(images, run, workers=0)
    assert_same_result(run, unbroken)
