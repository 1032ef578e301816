"""What a run does to a student: it learns, spares what is frozen, and stops where it must."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import (
    CLASSES,
    DIM,
    SIZE,
    ScaledMSE,
    class_features,
    make_feed,
    make_student,
    project,
)
from torch import Tensor, nn

from attar.errors import AttarError, UsageError
from attar.losses import feature_mse
from attar.methods.base import ClassFeatures, Objective, Phase, Sizes
from attar.methods.feature_mse import FeatureMSE
from attar.methods.registry import METHODS
from attar.students.student import Student, load_student
from attar.training.config import TrainingConfig
from attar.training.feed import Place
from attar.training.loop import train
from attar.types import Batch, Loss, Outputs

CONFIG = TrainingConfig(
    steps=4, batch_size=8, workers=0, precision="fp32", augmentation="none", log_every=1
)


def run(
    images: Path,
    out: Path,
    student: Student,
    *phases: Phase,
    config: TrainingConfig = CONFIG,
    **kwargs,
) -> Path:
    provider = kwargs.pop("provider", class_features())
    feed = make_feed(images, config, streams=kwargs.pop("streams", None))
    return train(student, phases, feed, provider, config, out, **kwargs)


def phase(objective: Objective | None = None, name: str = "distill", **options) -> Phase:
    chosen = {"trainable": "all", "steps": 4, **options}
    return Phase(name=name, objective=objective or FeatureMSE(), **chosen)


def state(student: Student) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in student.state_dict().items()}


def metrics(out: Path, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


class NotANumber(Objective):
    """Feature distance that breaks in one forward pass."""

    def __init__(self, breaks_at: int) -> None:
        super().__init__()
        self.calls, self.breaks_at = 0, breaks_at

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        self.calls += 1
        factor = float("nan") if self.calls == self.breaks_at else 1.0
        term = outputs.features.square().mean() * factor
        return Loss(total=term, terms={"square": term})


class AnchorMSE(Objective):
    """Stay near the anchor; notes the anchor's features."""

    needs_anchor = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        assert anchor is not None
        assert not anchor.features.requires_grad
        self.seen.append(anchor.features)
        term = feature_mse(outputs.features, anchor.features) + outputs.features.square().mean()
        return Loss(total=term, terms={"anchor": term})


class LearntFeatures(ClassFeatures):
    """Class features from context vectors through a frozen tower."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.context = nn.Parameter(torch.randn(CLASSES, 8, generator=generator))
        self.tower = nn.Linear(8, DIM).requires_grad_(False)

    def forward(self) -> Tensor:
        return self.tower(self.context)


class ToClass(Objective):
    """Distance to the class feature of the label."""

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        assert class_features is not None
        assert batch.labels is not None
        term = feature_mse(outputs.features, class_features[batch.labels])
        return Loss(total=term, terms={"class": term})


def test_eight_images_are_learnt_by_heart(images: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=40, lr=3e-3, weight_decay=0.0)
    table_feed = make_feed(images, config, count=8)
    student = make_student("resnet10t")
    before = project(student.eval())
    phases = [phase(steps=40)]
    out = train(student, phases, table_feed, None, config, tmp_path)
    losses = [line["loss"] for line in metrics(tmp_path, "train")]
    assert losses[0] > 1
    assert losses[-1] < 0.05
    saved = load_student(out)
    assert project(saved) == project(student) != before


def test_every_published_method_trains(images: Path, tmp_path: Path) -> None:
    # Several labels an image need another feed: tests/stages/test_several_labels.py trains those.
    methods = {k: v for k, v in METHODS.items() if not v.gives_several_labels}
    texts = {"text": torch.randn(6, DIM), "domain_texts": torch.randn(CLASSES, 2, DIM)}
    streams = {name: lambda step, text=text: text for name, text in texts.items()}
    for name, method in methods.items():
        dim = CLASSES if method.head == "classes" else DIM
        student = make_student(dim=dim)
        sizes = Sizes(
            dim=dim,
            trunk_width=student.network.num_features,
            num_classes=CLASSES,
            num_domains=2,
            teacher_dim=DIM,
            layer_widths=tuple(stage["num_chs"] for stage in student.network.feature_info),
        )
        phases = method.phases(method.options(), 4, sizes)
        assert sum(phase.steps for phase in phases) == 4
        run(images, tmp_path / name, student, *phases, streams=streams)
        assert len(metrics(tmp_path / name, "train")) == 4


def test_aligning_moves_the_projection_alone(images: Path, tmp_path: Path) -> None:
    student = make_student()
    before = state(student)
    run(images, tmp_path, student, phase(name="align", trainable="projection"))
    moved = {name for name, value in state(student).items() if not torch.equal(value, before[name])}
    projection = {id(p) for p in student.projection_parameters()}
    assert moved == {name for name, p in student.named_parameters() if id(p) in projection}


def test_distilling_the_backbone_spares_the_projection(images: Path, tmp_path: Path) -> None:
    student = make_student()
    before = state(student)
    run(images, tmp_path, student, phase(trainable="backbone"))
    same = {name for name, value in state(student).items() if torch.equal(value, before[name])}
    projection = {id(p) for p in student.projection_parameters()}
    assert same == {name for name, p in student.named_parameters() if id(p) in projection}


def test_a_frozen_backbone_builds_no_graph(images: Path, tmp_path: Path) -> None:
    student = make_student()
    pooled: list[Tensor] = []
    student.projection().register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    run(images, tmp_path, student, phase(trainable="projection"))
    assert len(pooled) == 4
    assert not any(features.requires_grad for features in pooled)


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_batchnorm_does_not_move(images: Path, tmp_path: Path, freeze: bool) -> None:
    student = make_student(freeze_bn=freeze)
    before = state(student)
    run(images, tmp_path, student, phase())
    after = state(student)
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) == freeze for name in statistics)


def test_a_nan_stops_the_run_and_names_the_batch(images: Path, tmp_path: Path) -> None:
    student = make_student()
    with pytest.raises(AttarError, match=r"loss is nan at step 3 of phase distill \(square nan\)"):
        run(images, tmp_path, student, phase(NotANumber(breaks_at=3)))
    named = json.loads((tmp_path / "nan_batch.json").read_text())
    assert named["at"] == "step 3 of phase distill"
    assert len(named["images"]) == 8
    files = {Path(image["path"]).name for image in named["images"]}
    assert len(files) == 8
    assert all((images / name).is_file() for name in files)
    assert all(value.isfinite().all() for value in student.parameters())
    assert not (tmp_path / "student").exists()


def test_an_infinite_gradient_stops_the_run(images: Path, tmp_path: Path) -> None:
    student = make_student()
    for parameter in student.parameters():
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(AttarError, match="gradient norm is"):
        run(images, tmp_path, student, phase(), config=replace(CONFIG, clip_norm=1.0))


def test_the_objectives_parameters_are_trained_and_saved_apart(
    images: Path, tmp_path: Path
) -> None:
    objective = ScaledMSE()
    config = replace(CONFIG, objective_lr_factor=10.0)
    out = run(images, tmp_path, make_student(), phase(objective), config=config)
    saved = load_file(tmp_path / "objective.safetensors")
    assert set(saved) == {"distill.scale", "distill.offset"}
    assert torch.equal(saved["distill.scale"], objective.scale)
    assert not torch.equal(saved["distill.scale"], torch.tensor(0.5))
    names = load_file(out / "model.safetensors")
    assert not any("scale" in name or "offset" in name for name in names)
    assert names.keys() == make_student().network.state_dict().keys()


def test_learnt_class_features_are_saved_without_their_tower(images: Path, tmp_path: Path) -> None:
    provider = LearntFeatures()
    before = provider.context.detach().clone()
    run(images, tmp_path, make_student(), phase(ToClass()), provider=provider)
    saved = load_file(tmp_path / "objective.safetensors")
    assert set(saved) == {"class_features.context"}
    assert torch.equal(saved["class_features.context"], provider.context)
    assert not torch.equal(provider.context, before)


def test_the_anchor_is_the_initial_student(images: Path, tmp_path: Path) -> None:
    first, second = AnchorMSE(), AnchorMSE()
    student = make_student()
    initial = make_student().eval()
    feed = make_feed(images, CONFIG)
    phases = [phase(first, "first", steps=2), phase(second, "second", steps=2)]
    train(student, phases, feed, None, CONFIG, tmp_path)
    place = Place(torch.device("cpu"))
    for batch, seen in zip(
        feed.batches(range(4), "clean", place), first.seen + second.seen, strict=True
    ):
        with torch.no_grad():
            torch.testing.assert_close(initial(batch.images).features, seen)


def test_a_phase_may_start_from_the_initial_weights(images: Path, tmp_path: Path) -> None:
    one, both = make_student(), make_student()
    run(images, tmp_path / "one", one, phase(steps=1, name="only"))
    config = replace(CONFIG, lr=1e-12, weight_decay=0.0)
    last = phase(steps=1, name="last", start="initial", trainable="projection")
    run(images, tmp_path / "both", both, phase(steps=3), last, config=config)
    fresh = make_student()
    for name, value in fresh.named_parameters():
        torch.testing.assert_close(dict(both.named_parameters())[name], value, atol=1e-9, rtol=0)
    assert not torch.equal(one.projection().weight, fresh.projection().weight)


def test_the_best_weights_end_a_phase(images: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Tensor]] = []
    values = iter([0.0, 0.1, 0.9, 0.3, 0.2])

    def validate(student: Student) -> dict[str, float]:
        assert not student.training
        seen.append(state(student))
        return {"selection": next(values), "acc1": 0.5}

    config = replace(CONFIG, selection="best", validate_every=1)
    out = run(images, tmp_path, make_student(), phase(), config=config, validate=validate)
    saved = load_student(out).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in seen[2].items())
    assert not all(torch.equal(value, saved[name]) for name, value in seen[4].items())
    assert [line["val/acc1"] for line in metrics(tmp_path, "val")] == [0.5] * 5


def test_weights_that_training_does_not_better_are_kept(images: Path, tmp_path: Path) -> None:
    student = make_student()
    before = state(student)
    values = iter([0.9, 0.1])

    def validate(student: Student) -> dict[str, float]:
        return {"selection": next(values)}

    config = replace(CONFIG, selection="best", validate_every=100)
    out = run(images, tmp_path, student, phase(), config=config, validate=validate)
    saved = load_student(out).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in before.items())


def test_best_without_validation_is_refused(images: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, selection="best")
    with pytest.raises(UsageError, match="selection best needs validation images"):
        run(images, tmp_path, make_student(), phase(), config=config)
    with pytest.raises(AttarError, match="no number to select by"):
        run(images, tmp_path, make_student(), phase(), config=config, validate=lambda _: {})


def test_averaged_weights_are_validated_and_saved(images: Path, tmp_path: Path) -> None:
    validated: list[dict[str, Tensor]] = []

    def validate(student: Student) -> dict[str, float]:
        validated.append(state(student))
        return {}

    plain, averaged = make_student(), make_student()
    run(images, tmp_path / "plain", plain, phase())
    config = replace(CONFIG, ema=0.9)
    run(images, tmp_path / "ema", averaged, phase(), config=config, validate=validate)
    # Training itself is the same; only what is shown and saved differs.
    name = "network.fc.weight"
    live = load_file(tmp_path / "ema/checkpoints/last/student.safetensors")
    assert torch.equal(live[name], plain.state_dict()[name])
    assert torch.equal(averaged.state_dict()[name], validated[-1][name])
    assert not torch.equal(averaged.state_dict()[name], live[name])
    # Running statistics are measured for the averaged weights, not averaged.
    statistic = next(name for name in validated[-1] if name.endswith("running_mean"))
    assert not torch.equal(averaged.state_dict()[statistic], validated[-1][statistic])


def test_auto_records_its_choice_and_keeps_it(images: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, precision="auto", checkpoint_every=1)
    file = tmp_path / "checkpoints/last/state.json"
    with pytest.raises(AttarError):
        # Two formats, one warm-up and three timed passes each, before the first step.
        run(images, tmp_path, make_student(), phase(NotANumber(8 + 3)), config=config)
    recorded = json.loads(file.read_text())
    assert recorded["step"] == 2
    assert recorded["precision"] in ("fp32", "bf16")
    other = {"fp32": "bf16", "bf16": "fp32"}[recorded["precision"]]
    file.write_text(json.dumps({**recorded, "precision": other}))
    objective = NotANumber(breaks_at=-1)
    run(images, tmp_path, make_student(), phase(objective), config=config)
    assert objective.calls == 2
    assert json.loads(file.read_text())["precision"] == other


def test_timing_precisions_changes_nothing(images: Path, tmp_path: Path) -> None:
    students = {}
    for precision in ("auto", "fp32", "bf16"):
        out = tmp_path / precision
        config = replace(CONFIG, precision=precision)
        run(images, out, make_student(), phase(), config=config)
        students[precision] = load_file(out / "student/model.safetensors")
    chosen = json.loads((tmp_path / "auto/checkpoints/last/state.json").read_text())["precision"]
    for name, value in students["auto"].items():
        assert torch.equal(value, students[chosen][name])
    assert not torch.equal(students["fp32"]["fc.weight"], students["bf16"]["fc.weight"])
    assert all(value.dtype != torch.bfloat16 for value in students["bf16"].values())


def test_the_log_holds_speed_terms_and_rates(images: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, log_every=3, lr=0.01, schedule="constant", warmup=0.5)
    run(images, tmp_path, make_student(), phase(ScaledMSE()), config=config)
    lines = metrics(tmp_path, "train")
    assert [line["step"] for line in lines] == [3, 4]
    assert lines[0].keys() == {
        "step", "phase", "split", "time", "loss", "term/near", "term/scale", "lr", "images_per_s",
        "data_wait",
    }  # fmt: skip
    assert lines[0]["lr"] == 0.01
    assert 0 < lines[0]["data_wait"] < 1
    assert lines[0]["images_per_s"] > 0
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert make_student().spec.image_size == SIZE
