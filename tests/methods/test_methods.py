"""Every registered method: phases fill the budget, gradients arrive, no teacher inside."""

import inspect
import math
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

from attar.errors import UsageError
from attar.methods.base import Objective, Sizes
from attar.methods.registry import METHODS, find_method, method_options
from attar.types import Batch, Outputs

SIZES = Sizes(dim=8, trunk_width=12, num_classes=5, num_domains=2, teacher_dim=8)


def make_batch(labels: list[int] | list[list[int]]) -> Batch:
    """Return a batch with one label an image (-1: none), or with multi-hot rows."""
    count = len(labels)
    several = isinstance(labels[0], list)
    return Batch(
        images=torch.rand(count, 3, 4, 4),
        keys=tuple(str(i) for i in range(count)),
        image_features=nn.functional.normalize(torch.randn(count, SIZES.dim), dim=-1),
        labels=torch.tensor(labels, dtype=torch.float32 if several else torch.int64),
        domains=torch.zeros(count, dtype=torch.int64),
        streams={
            "text": nn.functional.normalize(torch.randn(6, SIZES.dim), dim=-1),
            "domain_texts": torch.randn(SIZES.num_classes, 2, SIZES.dim),
        },
    )


@pytest.mark.parametrize("name", METHODS)
def test_phases_fill_the_budget(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    phases = method.phases(method_options(method, {}), 200, SIZES)
    assert sum(phase.steps for phase in phases) == 200
    assert all(phase.steps > 0 for phase in phases)


@pytest.mark.parametrize("name", METHODS)
def test_objective(name: str) -> None:
    method = METHODS[name]
    batch = make_batch([0, 3, 3, -1])
    if method.gives_several_labels:
        batch = make_batch([[1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0] * 5, [1] * 5])
    for phase in method.phases(method_options(method, {}), 10, SIZES):
        width = SIZES.num_classes if method.head == "classes" else SIZES.dim
        features = torch.randn(4, width, requires_grad=True)
        prompts = 10 if method.paired_prompts else 5
        class_features = nn.functional.normalize(torch.randn(prompts, SIZES.dim), dim=-1)
        class_features.requires_grad_()
        regions = torch.randn(4, 6, width, requires_grad=True)
        needed = regions if phase.objective.needs_regions else None
        trunk = torch.randn(4, SIZES.trunk_width, requires_grad=True)
        asked = trunk if phase.objective.needs_trunk else None
        outputs = Outputs(features=features, trunk=asked, regions=needed)
        extra = {}
        if phase.objective.needs_anchor:
            extra["anchor"] = Outputs(features=features.detach() + 1, trunk=trunk.detach() + 1)
        loss = phase.objective(outputs, batch, class_features, **extra)
        assert loss.total.ndim == 0
        assert loss.terms
        assert all(term.ndim == 0 for term in loss.terms.values())
        loss.total.backward()
        assert features.grad is not None
        assert features.grad.abs().sum() > 0
        if phase.objective.needs_regions:
            assert regions.grad is not None
            assert regions.grad.abs().sum() > 0
        if phase.objective.needs_trunk:
            assert trunk.grad is not None
            assert trunk.grad.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_objective_never_holds_the_teacher(name: str) -> None:
    method = METHODS[name]
    for phase in method.phases(method_options(method, {}), 10, SIZES):
        forward = inspect.signature(phase.objective.forward).parameters
        assert "teacher" not in forward
        assert isinstance(phase.objective, Objective)


def test_vl2v_stages_train_projection_then_backbone() -> None:
    method = find_method("vl2v-adip")
    align, distill = method.phases(method_options(method, {}), 200, SIZES)
    assert (align.name, align.trainable, align.steps) == ("align", "projection", 50)
    assert (distill.name, distill.trainable, distill.steps) == ("distill", "backbone", 150)
    (only,) = method.phases(method_options(method, {"align-share": "0"}), 200, SIZES)
    assert only.name == "distill"


def test_vl2v_may_align_an_unlabelled_image_to_its_image_feature_alone() -> None:
    method = find_method("vl2v-adip")
    options = method_options(method, {"unlabelled": "image"})
    objective = method.phases(options, 4, SIZES)[0].objective
    batch = make_batch([-1, -1])
    class_features = torch.randn(5, SIZES.dim)
    assert batch.image_features is not None
    perfect = objective(Outputs(features=batch.image_features), batch, class_features)
    assert perfect.total.item() == pytest.approx(-1, abs=1e-6)


def test_erm_ignores_images_without_a_label() -> None:
    method = find_method("erm")
    objective = method.phases(method_options(method, {}), 4, SIZES)[0].objective
    features = torch.randn(3, 5)
    with_unlabelled = objective(Outputs(features=features), make_batch([1, -1, 2]), None)
    without = objective(Outputs(features=features[[0, 2]]), make_batch([1, 2]), None)
    assert with_unlabelled.total.item() == pytest.approx(without.total.item())
    none = objective(Outputs(features=features), make_batch([-1, -1, -1]), None)
    assert none.total.item() == 0


def test_unknown_method_and_option_name_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*'vl2v-adip'"):
        find_method("vl2v")
    with pytest.raises(UsageError, match=r"--method\.image-weight"):
        method_options(find_method("vl2v-adip"), {"image-wight": "0.3"})
    with pytest.raises(UsageError, match="expected float"):
        method_options(find_method("vl2v-adip"), {"image-weight": "much"})


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("vl2v-adip", "image-weight", 2),
        ("vl2v-adip", "image-weight", float("nan")),
        ("vl2v-adip", "align-share", 1),
        ("erm", "label-smoothing", -0.1),
    ],
)
def test_an_option_out_of_its_range_is_refused(method: str, option: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"--method\.{option} {value}.*: must"):
        method_options(find_method(method), {option: value})


NUMBERS = [
    (method.name, name)
    for method in METHODS.values()
    for name, kind in get_type_hints(method.options).items()
    if float in (kind, *get_args(kind))
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize(("method", "option"), NUMBERS)
def test_no_option_takes_what_is_no_sensible_number(method: str, option: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"--method\.{option.replace('_', '-')}"):
        method_options(find_method(method), {option: value})
