"""Averages of the weights in whole runs: killed, chosen by validation, measured again."""

import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import SIZE, ScaledMSE, class_features, make_feed, make_student, two_phases

from attar.errors import UsageError
from attar.methods.base import Phase
from attar.students.student import Student, load_student
from attar.training.config import TrainingConfig
from attar.training.loop import train


def measure(student: Student) -> dict[str, float]:
    """A stand-in for validation: a loss that depends on every weight."""
    images = torch.linspace(0, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)
    with torch.no_grad():
        size = student(images).features.abs().mean()
    return {"selection": float(size), "loss": 1 + float(size)}


def config(average: str, **options) -> TrainingConfig:
    return TrainingConfig(
        **{
            "steps": 17,
            "batch_size": 4,
            "workers": 0,
            "average": average,
            "tail_share": 0.5,
            "checkpoint_every": 2,
            "precision": "fp32",
            **options,
        }
    )


def run(images: Path, out: Path, settings: TrainingConfig, kill_at: int | None = None, **options):
    torch.set_num_threads(1)
    arguments = {"validate": measure, **options}
    return train(
        make_student(),
        two_phases(5, 12, kill_at),
        make_feed(images, settings),
        class_features(),
        settings,
        out,
        **arguments,
    )


@pytest.mark.parametrize(("average", "killed_in"), [("swad", 14), ("swad-code", 12), ("tail", 16)])
def test_a_killed_run_ends_as_an_unbroken_one(
    images: Path, tmp_path: Path, average: str, killed_in: int
) -> None:
    settings = config(average)
    run(images, tmp_path / "unbroken", settings)
    forked = multiprocessing.get_context("fork").Process(
        target=run, args=(images, tmp_path / "killed", settings, killed_in)
    )
    forked.start()
    forked.join()
    assert forked.exitcode == -signal.SIGKILL
    run(images, tmp_path / "killed", settings)
    for file in ("student/model.safetensors", "objective.safetensors"):
        expected = load_file(tmp_path / "unbroken" / file)
        found = load_file(tmp_path / "killed" / file)
        assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_swad_saves_the_mean_of_its_window_with_statistics_of_its_own(
    images: Path, tmp_path: Path
) -> None:
    losses = iter([9.0, *[1.0, 1.1, 1.2, 1.1], *[5.0] * 7, 9.0])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(student: Student) -> dict[str, float]:
        assert not student.training
        seen.append({k: v.clone() for k, v in student.state_dict().items()})
        return {"loss": next(losses), "selection": 0.0}

    student = load_student(run(images, tmp_path, config("swad"), validate=validate))
    # The first phase of 5 steps is validated at its end alone, the second after each of 12 steps.
    assert len(seen) == 1 + 12
    window = seen[1:5]
    for name, value in student.named_parameters():
        expected = torch.stack([one[name] for one in window]).mean(0)
        torch.testing.assert_close(value.data, expected, rtol=1e-5, atol=1e-7)
    statistic = next(name for name in seen[0] if name.endswith("running_mean"))
    averaged = torch.stack([one[statistic] for one in window]).mean(0)
    assert not torch.allclose(student.state_dict()[statistic], averaged, rtol=1e-3)


def test_with_best_the_next_phase_begins_from_the_best_raw_weights(
    images: Path, tmp_path: Path
) -> None:
    selections = iter([0.0, 1.0, 0.0, 0.0, 0.0, *[0.5] * 20])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(student: Student) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in student.state_dict().items()})
        return {"selection": next(selections), "loss": 1.0 + 0.01 * len(seen)}

    settings = config("swad", selection="best", validate_every=2, lr=1e-2)
    phases = (
        Phase(name="align", objective=ScaledMSE(), trainable="all", steps=8),
        Phase(name="distill", objective=ScaledMSE(), trainable="all", steps=4),
    )
    settings = replace(settings, steps=12)
    feed = make_feed(images, settings)
    student = make_student()
    train(student, phases, feed, None, settings, tmp_path, validate=validate)
    # Five validations of the first phase (its start among them), then the second phase's start.
    assert len(seen) == 5 + 3
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[5].items())
    # The result is SWAD's own choice: both segments of the last phase, not its "best".
    for name, value in student.named_parameters():
        assert not torch.equal(value.data, seen[5][name])


def test_snapshots_have_statistics_of_their_own_and_leave_training_alone(
    images: Path, tmp_path: Path
) -> None:
    plain = load_file(run(images, tmp_path / "plain", config("ema")) / "model.safetensors")
    settings = config("ema", snapshots=3)
    last = load_file(run(images, tmp_path / "kept", settings) / "model.safetensors")
    kept = {path.name: path for path in (tmp_path / "kept" / "snapshots").iterdir()}
    assert sorted(kept) == ["00000005", "00000011", "00000017"]
    ends = load_file(kept["00000017"] / "model.safetensors")
    for name, value in plain.items():
        assert torch.equal(last[name], value)
        assert torch.equal(ends[name], value)
    # The first phase trains the projection alone: an average of its statistics is where it began.
    statistic = next(name for name in plain if name.endswith("running_mean"))
    began = make_student().network.state_dict()[statistic]
    early = load_file(kept["00000005"] / "model.safetensors")[statistic]
    assert not torch.allclose(early, began, atol=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_best_average_is_saved_as_it_was_measured(
    images: Path, tmp_path: Path, share: float
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def validate(student: Student) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in student.state_dict().items()})
        return {"selection": float(len(seen) == 3)}

    average = "ema" if share == 1 else "none"
    settings = config(average, selection="best", validate_every=3, steps=12, lr=1e-2)
    phase = Phase(
        name="distill", objective=ScaledMSE(), trainable="all", steps=12, interpolation=share
    )
    feed, student = make_feed(images, settings), make_student()
    train(student, [phase], feed, None, settings, tmp_path / "run", validate=validate)
    assert len(seen) == 1 + 4
    for name, value in load_student(tmp_path / "run" / "student").state_dict().items():
        torch.testing.assert_close(value, seen[2][name], rtol=1e-5, atol=1e-6)


def test_swad_without_validation_images_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--training\.average swad-code needs validation images"):
        run(images, tmp_path, config("swad-code"), validate=None)


def test_how_often_a_phase_is_validated() -> None:
    swad_config = TrainingConfig(average="swad")
    assert swad_config.validation_interval(5000) == 200
    assert swad_config.validation_interval(10) == 1
    assert swad_config.validation_interval(5000, averaged=False) is None
    assert TrainingConfig(average="swad", validate_every=7).validation_interval(5000) == 7
    assert TrainingConfig(selection="best").validation_interval(50) == 5
    assert TrainingConfig(average="tail").validation_interval(50) is None
    assert TrainingConfig(ema=0.9).averaging == "ema"
    assert TrainingConfig(average="ema").ema_decay == 0.999


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tail_share": 1.0}, "--training.tail-share 1.0: must be above 0 and below 1"),
        ({"swad_converge": 0}, "--training.swad-converge 0: must be at least 1"),
        ({"swad_ratio": -0.1}, "--training.swad-ratio -0.1: must be at least 0"),
        ({"average": "tail", "ema": 0.9}, "--training.ema 0.9 .*leave it out with tail"),
    ],
)
def test_impossible_averages_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingConfig(**values)
