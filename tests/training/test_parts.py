"""Optimisers, schedules, averages, BatchNorm statistics, configuration and the estimate."""

import json
import math
from pathlib import Path

import pytest
import torch
from small_run import CLASSES, SIZE, class_features, make_feed, make_student, read_table, two_phases
from torch import nn

from attar.data.splits import SourceSplits
from attar.errors import UsageError
from attar.methods.base import Phase
from attar.students.student import Student
from attar.training.averaging import ExponentialAverage, averaged_weights
from attar.training.batchnorm import live_batchnorms, reestimate_batchnorm
from attar.training.config import TrainingConfig
from attar.training.estimate import measure_step
from attar.training.feed import Feed
from attar.training.log import MetricsLog
from attar.training.optim import build_optimizer, learning_rate, set_learning_rate
from attar.training.progress import TrainingBar
from attar.training.step import select_trainable


def rates(**options) -> list[float]:
    config = TrainingConfig(lr=1.0, **options)
    return [learning_rate(config, step, 8) for step in range(8)]


def test_schedules() -> None:
    assert rates(schedule="constant", warmup=0) == [1.0] * 8
    cosine = [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates(schedule="cosine", warmup=0) == pytest.approx(cosine)
    assert rates(schedule="step", warmup=0) == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)
    thirds = rates(schedule="step", warmup=0, milestones=(1 / 4,))
    assert thirds == pytest.approx([1.0] * 2 + [0.1] * 6)
    assert rates(schedule="constant", warmup=0.5) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("steps", [4, 10, 37, 90])
def test_one_cycle_is_pytorchs(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=steps)
    config = TrainingConfig(lr=0.3, schedule="one-cycle")
    for step in range(steps):
        assert learning_rate(config, step, steps) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_groups_by_decay_and_owner(name: str, kind: type) -> None:
    student = make_student()
    others = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(()))]
    config = TrainingConfig(optimizer=name, weight_decay=0.1, objective_lr_factor=5.0)
    optimizer = build_optimizer(config, student.parameters(), others)
    assert isinstance(optimizer, kind)
    set_learning_rate(optimizer, 0.01)
    found = {
        id(p): (group["weight_decay"], group["lr"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for parameter in student.parameters():
        assert found[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0, 0.01)
    assert [found[id(p)] for p in others] == [(0.1, 0.05), (0.0, 0.05)]
    assert optimizer.defaults.get("momentum", 0.9) == 0.9


def test_frozen_parameters_are_not_optimised() -> None:
    student = make_student()
    select_trainable(student, two_phases()[0])
    optimizer = build_optimizer(TrainingConfig(), student.parameters())
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in student.projection_parameters()}


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'adamx'.*adamw"):
        build_optimizer(TrainingConfig(optimizer="adamx"), make_student().parameters())
    with pytest.raises(UsageError, match=r"'cosin'.*cosine"):
        build_optimizer(TrainingConfig(schedule="cosin"), make_student().parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3, "epochs": 1}, "not both"),
        ({"steps": 0}, "--training.steps 0: must be at least 1"),
        ({"lr": 0.0}, "--training.lr 0.0: must be above 0"),
        ({"ema": 1.0}, "--training.ema 1.0: must be at least 0 and below 1"),
        ({"warmup": 1.5}, "--training.warmup 1.5: must be at least 0 and below 1"),
        ({"clip_norm": -1.0}, "--training.clip-norm -1.0: must be above 0"),
        ({"batch_size": 0}, "--training.batch-size 0: must be at least 1"),
        ({"lr": math.nan}, "--training.lr nan: must be above 0"),
    ],
)
def test_impossible_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingConfig(**values)


def test_exponential_average() -> None:
    model = nn.BatchNorm1d(2)
    average = ExponentialAverage(model, decay=0.5)
    expected = 1.0
    for n, value in enumerate([2.0, 3.0, 5.0], start=1):
        nn.init.constant_(model.weight, value)
        model.num_batches_tracked.fill_(n)
        average.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert average.weights()["weight"].tolist() == pytest.approx([expected] * 2)
    assert int(average.weights()["num_batches_tracked"]) == 3
    again = ExponentialAverage(model, decay=0.5)
    again.load_state_dict(average.state_dict())
    again.update(model)
    average.update(model)
    assert torch.equal(again.weights()["weight"], average.weights()["weight"])
    with averaged_weights(model, average):
        assert torch.equal(model.weight, average.weights()["weight"])
    assert model.weight.tolist() == [5.0, 5.0]


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050"])
def test_batchnorm_statistics_are_those_of_the_images(name: str) -> None:
    student = make_student(name).train()
    images = [torch.rand(6, 3, SIZE, SIZE) for _ in range(3)]
    inputs: list[torch.Tensor] = []
    first = next(m for m in student.modules() if isinstance(m, nn.BatchNorm2d))
    hook = first.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    momentum, weight = first.momentum, first.weight.clone()
    assert reestimate_batchnorm(student, images) == len(live_batchnorms(student))
    hook.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    torch.testing.assert_close(first.running_mean, means)
    torch.testing.assert_close(first.running_var, variances)
    assert first.momentum == momentum
    assert torch.equal(first.weight, weight)
    assert student.training


def test_frozen_batchnorm_is_not_measured_again() -> None:
    student = make_student(freeze_bn=True)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    assert reestimate_batchnorm(student, iter([torch.rand(4, 3, SIZE, SIZE)])) == 0
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def test_the_estimate_measures_copies(images: Path) -> None:
    config = TrainingConfig(batch_size=4, workers=0)
    student = make_student().train()
    before = {k: v.clone() for k, v in student.state_dict().items()}
    phases = two_phases(30, 10)
    times = measure_step(student, phases, make_feed(images, config), class_features(), config)
    assert times.compute.keys() == {"align", "distill"}
    assert times.data > 0
    mean = (times.compute["align"] * 30 + times.compute["distill"] * 10) / 40
    assert times.step == pytest.approx(mean + times.data)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert phases[0].objective.scale.item() == 0.5
    assert all(p.grad is None for p in student.parameters())
    assert len(class_features()()) == CLASSES


def test_the_estimate_needs_no_store(images: Path) -> None:
    table = read_table(images)
    source = SourceSplits(train=table, val=table.select([]), few_shot=table.select([]))
    config = TrainingConfig(batch_size=4)
    feed = Feed(source, None, config, SIZE)
    assert measure_step(make_student(), two_phases(), feed, None, config).step > 0


def test_the_bar_writes_plain_lines_when_nobody_watches(capsys: pytest.CaptureFixture) -> None:
    numbers = {"loss": 1.5, "images_per_s": 1234.0, "data_wait": 0.25}
    with TrainingBar(total_steps=20, start=10) as bar:
        bar.report(15, "align", numbers)
        bar.advance(20, "align")
        bar.report(20, "align", numbers)
    shown = capsys.readouterr()
    expected = "align: step 20/20  loss 1.5000  1,234 images/s  data wait 25%  0:00 left\n"
    assert shown.err == expected
    assert shown.out == ""


def test_the_log_drops_what_lies_beyond_the_resumed_step(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, step=0) as log:
        for step in (1, 2, 3):
            log.write(step, "align", "train", 0.1, {"loss": float(step)})
    with MetricsLog(tmp_path, step=2) as log:
        log.write(3, "align", "train", 0.2, {"loss": 9.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [line.split('"loss": ')[1] for line in text.splitlines()] == ["1.0}", "2.0}", "9.0}"]


def test_what_a_phase_begins_with_is_logged_once_though_it_is_done_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, step=0) as log:
        log.write(0, "align", "val", 0.1, {"loss": 1.0})
    with MetricsLog(tmp_path, step=0) as log:  # killed before it noted that it had begun
        log.write(0, "align", "val", 0.2, {"loss": 1.0})
        log.write(0, "distill", "val", 0.2, {"loss": 2.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["time"]) for line in lines] == [("align", 0.1), ("distill", 0.2)]


def test_phases_select_what_moves() -> None:
    student: Student = make_student()
    for trainable in ("projection", "backbone", "all"):
        phase = Phase(name="p", objective=two_phases()[0].objective, trainable=trainable, steps=1)
        select_trainable(student, phase)
        assert all(
            p.requires_grad == (trainable != "backbone") for p in student.projection_parameters()
        )
        assert all(
            p.requires_grad == (trainable != "projection") for p in student.backbone_parameters()
        )
