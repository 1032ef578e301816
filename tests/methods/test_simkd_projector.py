"""SimKD's projector, Linear-BatchNorm-ReLU-Linear: a part of the student wherever it goes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.cost import measure_cost
from attar.evaluation.models import from_student
from attar.methods.base import Phase, Sizes
from attar.methods.registry import find_method, method_options
from attar.run import DataConfig, RunConfig
from attar.stages import request
from attar.students.config import StudentConfig
from attar.students.start import take_weights
from attar.students.student import Student, build_student, check_student, load_student, save_student
from attar.training.batchnorm import live_batchnorms, reestimate_batchnorm
from attar.training.config import TrainingConfig
from attar.training.step import StepModule, select_trainable
from attar.types import Batch

D, SIZE = 6, 32
NAME = "test_resnet"
MLP = StudentConfig(weights="none", image_size=SIZE, projector="mlp")


def make_student(**options) -> Student:
    torch.manual_seed(0)
    student = build_student(NAME, D, replace(MLP, **options))
    if student.projector is not None:
        norm = student.projector[0]
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
    return student


def images(count: int = 5, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def projected(student: Student, pixels: Tensor) -> NDArray[np.float64]:
    """Return what the first linear layer gives, [N, D]: the timm network's own output."""
    return student.network((pixels - student.mean) / student.std).detach().double().numpy()


def normed(student: Student, x: NDArray[np.float64], *, training: bool) -> NDArray[np.float64]:
    """Return what the ReLU sees."""
    norm = student.projector[0]
    state = {k: v.detach().double().numpy() for k, v in norm.state_dict().items()}
    mean, variance = state["running_mean"], state["running_var"]
    if training:
        mean, variance = x.mean(axis=0), x.var(axis=0)
    return (x - mean) / np.sqrt(variance + norm.eps) * state["weight"] + state["bias"]


def reference(student: Student, x: NDArray[np.float64], *, training: bool) -> NDArray[np.float64]:
    linear = student.projector[2]
    weight, bias = (p.detach().double().numpy() for p in (linear.weight, linear.bias))
    return np.maximum(normed(student, x, training=training), 0) @ weight.T + bias


def distil_phase() -> Phase:
    method = find_method("simkd")
    sizes = Sizes(dim=D, trunk_width=8, num_classes=3, num_domains=1, teacher_dim=D)
    (phase,) = method.phases(method_options(method, {}), 10, sizes)
    return phase


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_that_of_linear_batchnorm_relu_linear(training: bool) -> None:
    assert find_method("simkd").student == {"projector": "mlp"}
    student, pixels = make_student().eval(), images()
    before = projected(student, pixels)
    student.train_projection(training)
    expected = reference(student, before, training=training)
    teacher = nn.functional.normalize(torch.randn(5, D), dim=-1)
    batch = Batch(images=pixels, keys=tuple("abcde"), image_features=teacher)
    loss = distil_phase().objective(student(pixels), batch, None)
    rows = ((expected - teacher.double().numpy()) ** 2).sum(axis=1)
    assert loss.total.item() == pytest.approx(rows.sum() / (5 * D), rel=1e-5)
    assert 0 < (normed(student, before, training=training) < 0).mean() < 1
    loss.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in student.projector.parameters())


def test_it_is_saved_with_the_student_and_timm_reads_what_is_before_it(tmp_path: Path) -> None:
    student, pixels = make_student().eval(), images(2)
    folder = save_student(student, tmp_path / "student")
    loaded = load_student(folder)
    assert loaded.spec == student.spec
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        features = student(pixels).features
        assert torch.equal(loaded(pixels).features, features)
        torch.testing.assert_close(student(pixels, trunk=True).features, features)
        assert student(pixels, regions=True).regions.shape[2] == D
        plain = network((pixels - student.mean) / student.std)
    np.testing.assert_allclose(
        reference(student, plain.double().numpy(), training=False), features, atol=1e-5
    )


def test_evaluation_counts_it_and_tells_its_weights_apart() -> None:
    student = make_student().eval()
    model = from_student(student)
    cost = measure_cost(model)
    assert cost.num_parameters == sum(p.numel() for p in student.parameters())
    with torch.no_grad():
        student.projector[2].bias += 1
    assert from_student(student).identity != model.identity


def test_a_phase_of_the_projection_trains_it_and_one_of_the_backbone_holds_it() -> None:
    student = make_student()
    for trainable, trained in (("projection", True), ("backbone", False), ("all", True)):
        phase = replace(distil_phase(), trainable=trainable)
        select_trainable(student, phase)
        StepModule(student, phase, None, "fp32").set_modes()
        assert all(p.requires_grad is trained for p in student.projector.parameters())
        assert all(module.training is trained for module in student.projector.modules())
    count = sum(p.numel() for p in student.projection_parameters())
    assert count == sum(p.numel() for p in student.projection().parameters()) + 2 * D + D * D + D
    whole = sum(p.numel() for p in student.parameters())
    assert count + sum(p.numel() for p in student.backbone_parameters()) == whole
    without = make_student(projection_bias=False)
    assert not without.projection().bias.any()
    assert all(p.requires_grad for p in without.projector.parameters())


def test_frozen_batchnorm_is_the_backbones_and_the_projectors_is_measured_again() -> None:
    student = make_student(freeze_bn=True).train()
    norm = student.projector[0]
    assert live_batchnorms(student) == [norm]
    assert len(live_batchnorms(make_student())) > 1
    before = {k: v.clone() for k, v in student.state_dict().items()}
    batches = [images(4, seed) for seed in (2, 3)]
    assert reestimate_batchnorm(student, batches) == 1
    moved = {k for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    counted = {"running_mean", "running_var", "num_batches_tracked"}
    assert moved <= {f"projector.0.{name}" for name in counted}
    with torch.no_grad():
        means = [projected(student.eval(), batch).mean(axis=0) for batch in batches]
    np.testing.assert_allclose(norm.running_mean, np.mean(means, axis=0), atol=1e-5)


def test_a_fitted_projection_takes_its_place() -> None:
    student = make_student().eval()
    with torch.no_grad():
        trunk = student(images(2), trunk=True).trunk
        weight, bias = torch.randn(D, trunk.shape[1]), torch.randn(D)
        student.set_projection(weight, bias)
        torch.testing.assert_close(
            student(images(2)).features, trunk @ weight.T + bias, atol=1e-4, rtol=1e-4
        )
    assert student.spec.projector == "linear"


def test_where_it_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"projection fitted is one linear map.*projector linear"):
        replace(MLP, projection="fitted")
    with pytest.raises(UsageError, match=r"--student\.projector mlp: a plain classifier"):
        check_student(NAME, MLP, "classes")
    folder = save_student(make_student(), tmp_path / "run" / "student").parent
    known = "its projector is 'mlp', this run's 'linear'; .*, or add --student.projector mlp$"
    with pytest.raises(UsageError, match=known):
        take_weights(make_student(projector="linear"), folder)


def test_regions_and_whole_images_do_not_share_its_batchnorm() -> None:
    config = RunConfig(
        data=DataConfig(data=()),
        teacher="pocket",
        student=NAME,
        method="li2023-multilabel",
        student_config=MLP,
    )
    with pytest.raises(
        UsageError, match=r"^--student\.projector mlp: .*-multilabel compares; give"
    ):
        request.check_names(config)
    linear = replace(config, student_config=replace(MLP, projector="linear"))
    assert request.check_names(linear)[0].paired_prompts


def test_one_image_a_step_is_refused_before_the_training() -> None:
    count = 20
    table = ImageTable(
        paths=tuple(f"{i}.png" for i in range(count)),
        names=tuple(f"{i}.png" for i in range(count)),
        keys=tuple(f"{i:064x}" for i in range(count)),
        labels=tuple(i % 2 for i in range(count)),
        domains=tuple(i % 2 for i in range(count)),
        captions=(None,) * count,
        splits=(None,) * count,
        class_names=("cat", "dog"),
        domain_names=("art", "photo"),
    )
    one = TrainingConfig(batch_size=1)
    config = RunConfig(
        data=DataConfig(data=()), teacher="pocket", student=NAME, method="simkd", training=one
    )
    config = request.fill_sections(config)
    splits = request.divide(table, config)
    with pytest.raises(UsageError, match=r"--training\.batch-size 1: .* at least 2 images"):
        request.check_splits(splits, config)
    request.check_splits(splits, replace(config, training=replace(one, sampler="per-domain")))
    linear = replace(config.student_config, projector="linear")
    request.check_splits(splits, replace(config, student_config=linear))
