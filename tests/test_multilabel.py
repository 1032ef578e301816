"""Several labels an image: every formula against numpy in float64, and the objectives."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar.errors import AttarError, UsageError
from attar.methods.base import Phase, Sizes
from attar.methods.dualcoop import CLOSED_SET, METHOD, MultiLabelOptions
from attar.methods.registry import method_options
from attar.multilabel import asymmetric_loss, f1_paper, m1, macro_f1, region_probabilities
from attar.students.config import StudentConfig
from attar.students.student import build_student
from attar.training.step import StepModule
from attar.types import Batch, Outputs

SIZES = Sizes(dim=8, trunk_width=12, num_classes=5, num_domains=0)
SHAPES = [(1, 1, 1, 3), (3, 1, 4, 5), (4, 9, 6, 7), (2, 16, 1, 2)]
"""(B, R, C, D)."""


# References, written from the equations


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def reference_probabilities(regions, positive, negative, bias, tau):
    batch, labels = len(regions), len(positive)
    result = np.empty((batch, labels))
    for b in range(batch):
        for c in range(labels):
            logits = []
            for prompts in (positive, negative):
                cosines = unit(regions[b]) @ unit(prompts[c])
                weights = np.exp(cosines / tau - (cosines / tau).max())
                logits.append((weights / weights.sum() * cosines).sum() / tau)
            exponentials = np.exp(np.array(logits) - max(logits))
            result[b, c] = exponentials[0] / exponentials.sum() + np.tanh(bias)
    return np.clip(result, 0, 1)


def reference_asymmetric(p, t, gamma_negative, gamma_positive, clip):
    total = 0.0
    for i in range(p.shape[0]):
        for y in range(p.shape[1]):
            if t[i, y]:
                total -= (1 - p[i, y]) ** gamma_positive * np.log(max(p[i, y], 1e-8))
            else:
                q = min(1 - p[i, y] + clip, 1)
                total -= (1 - q) ** gamma_negative * np.log(max(q, 1e-8))
    return total / p.shape[0]


def reference_asymmetric_gradient(p, t, gamma_negative, gamma_positive, clip):
    """Of the loss whose focusing factors are constants."""
    gradient = np.zeros_like(p)
    for i, y in np.ndindex(p.shape):
        if t[i, y]:
            gradient[i, y] = -((1 - p[i, y]) ** gamma_positive) / p[i, y]
        elif 1 - p[i, y] + clip < 1:
            q = 1 - p[i, y] + clip
            gradient[i, y] = (1 - q) ** gamma_negative / q
    return gradient / len(p)


def reference_counts(predicted, targets):
    for label in range(targets.shape[1]):
        yield (
            sum(p and t for p, t in zip(predicted[:, label], targets[:, label], strict=True)),
            sum(p and not t for p, t in zip(predicted[:, label], targets[:, label], strict=True)),
            sum(t and not p for p, t in zip(predicted[:, label], targets[:, label], strict=True)),
        )


def reference_f1_paper(predicted, targets):
    precisions, recalls = [], []
    for tp, fp, fn in reference_counts(predicted, targets):
        if tp + fp + fn:
            precisions.append(tp / (tp + fp + fn))
        if tp + fn:
            recalls.append(tp / (tp + fn))
    precision = np.mean(precisions) if precisions else 0
    recall = np.mean(recalls) if recalls else 0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


def reference_macro_f1(predicted, targets):
    scores = []
    for tp, fp, fn in reference_counts(predicted, targets):
        if tp + fp + fn:
            precision = tp / (tp + fp) if tp + fp else 0
            recall = tp / (tp + fn) if tp + fn else 0
            both = precision + recall
            scores.append(2 * precision * recall / both if both else 0)
    return np.mean(scores) if scores else 0


# Probabilities


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [None, 0.3, -0.7])
@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_region_probabilities(shape, bias, tau) -> None:
    batch, places, labels, dim = shape
    generator = np.random.default_rng(sum(shape))
    regions = generator.standard_normal((batch, places, dim)) * 3
    positive, negative = generator.standard_normal((2, labels, dim))
    expected = reference_probabilities(regions, positive, negative, bias or 0.0, tau)
    arguments = [torch.from_numpy(a) for a in (regions, positive, negative)]
    copies = [a.clone() for a in arguments]
    given = None if bias is None else torch.tensor(bias, dtype=torch.float64)
    found = region_probabilities(*arguments, given, tau)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)
    assert all(torch.equal(a, c) for a, c in zip(arguments, copies, strict=True))


def test_one_region_is_a_softmax_over_the_two_prompts() -> None:
    region, positive, negative = torch.randn(3, 1, 6, dtype=torch.float64)
    cosines = [F.cosine_similarity(region, t) for t in (positive, negative)]
    expected = torch.softmax(torch.stack(cosines) / 0.07, dim=0)[0]
    found = region_probabilities(region[None], positive, negative)
    torch.testing.assert_close(found, expected[None])


def test_one_region_in_many_is_enough_for_a_label() -> None:
    """The best places decide: nine other regions do not hide the one that shows the label."""
    positive, negative = torch.eye(4)[:1], torch.eye(4)[1:2]
    regions = torch.cat([positive, torch.eye(4)[2:3].expand(9, -1)])[None]
    assert region_probabilities(regions, positive, negative).item() > 0.99


def test_probability_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    arguments = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 3, 4), (5, 4), (5, 4))]
    bias = torch.tensor(0.01, dtype=torch.float64)
    for argument in (*arguments, bias):
        argument.requires_grad_()

    def soft(*values):  # a temperature at which no probability meets the clamp
        return region_probabilities(*values, temperature=1.0)

    assert torch.autograd.gradcheck(soft, (*arguments, bias))


# Loss


@pytest.mark.parametrize("shape", [(1, 1), (4, 6), (7, 3)])
@pytest.mark.parametrize("kind", ["random", "no positives", "all positives"])
@pytest.mark.parametrize("settings", [(2, 1, 0.05), (0, 0, 0.0), (4.0, 0.5, 0.2)])
def test_asymmetric_loss(shape, kind, settings) -> None:
    generator = np.random.default_rng(1)
    p = generator.uniform(0.01, 0.99, shape)
    t = {
        "random": generator.integers(0, 2, shape),
        "no positives": np.zeros(shape, dtype=int),
        "all positives": np.ones(shape, dtype=int),
    }[kind]
    probabilities = torch.from_numpy(p).requires_grad_()
    loss = asymmetric_loss(probabilities, torch.from_numpy(t), *settings)
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(reference_asymmetric(p, t, *settings), abs=1e-9)
    loss.backward()
    expected = reference_asymmetric_gradient(p, t, *settings)
    np.testing.assert_allclose(probabilities.grad.numpy(), expected, atol=1e-9)


def test_asymmetric_loss_at_the_ends() -> None:
    ends = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[0, 1, 0, 1]])
    loss = asymmetric_loss(ends, targets)
    expected = -np.log(1e-8) - 0.95**2 * np.log(0.05)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert ends.grad.isfinite().all()
    easy = asymmetric_loss(torch.full((2, 3), 0.05), torch.zeros(2, 3))
    assert easy.item() == pytest.approx(0, abs=1e-6), "within the clip a negative costs nothing"


def test_without_focus_and_clip_it_is_binary_cross_entropy() -> None:
    p, t = torch.rand(5, 4, dtype=torch.float64), torch.randint(0, 2, (5, 4)).double()
    expected = F.binary_cross_entropy(p, t, reduction="sum") / 5
    torch.testing.assert_close(asymmetric_loss(p, t, 0, 0, 0), expected)


# Metrics


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, 4), (40, 7)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_metrics(shape, density) -> None:
    generator = np.random.default_rng(3)
    targets = generator.random(shape) < density
    predicted = generator.random(shape) < 0.4
    assert m1(predicted, targets) == pytest.approx((predicted == targets).mean())
    for mine, reference in ((f1_paper, reference_f1_paper), (macro_f1, reference_macro_f1)):
        value = mine(predicted, targets)
        assert isinstance(value, float)
        assert value == pytest.approx(reference(predicted, targets), abs=1e-9)
        as_tensors = mine(torch.from_numpy(predicted), torch.from_numpy(targets))
        assert as_tensors == value


def test_metrics_of_known_decisions() -> None:
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)
    predicted = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=bool)
    assert m1(predicted, targets) == pytest.approx(7 / 9)
    # Label 0: TP 1, FP 1, FN 1; label 1: TP 2; label 2 neither occurs nor is predicted.
    precision, recall = (1 / 3 + 1) / 2, (1 / 2 + 1) / 2
    expected = 2 * precision * recall / (precision + recall)
    assert f1_paper(predicted, targets) == pytest.approx(expected)
    assert macro_f1(predicted, targets) == pytest.approx((1 / 2 + 1) / 2)
    for metric in (m1, f1_paper, macro_f1):
        assert metric(targets, targets) == 1
    for metric in (f1_paper, macro_f1):
        assert metric(np.zeros((2, 2)), np.ones((2, 2))) == 0
        assert metric(np.zeros((2, 2)), np.zeros((2, 2))) == 0
        assert metric(np.ones((2, 2)), np.zeros((2, 2))) == 0


@pytest.mark.parametrize(("one", "other"), [((2, 3), (3, 2)), ((0, 3), (0, 3)), ((4,), (4,))])
def test_decisions_of_other_shapes_are_refused(one, other) -> None:
    for metric in (m1, f1_paper, macro_f1):
        with pytest.raises(ValueError, match="must be equal"):
            metric(np.zeros(one, dtype=bool), np.zeros(other, dtype=bool))


# Objectives


def make_batch(targets: torch.Tensor | None, size: int = 4) -> Batch:
    count = 3 if targets is None else len(targets)
    return Batch(
        images=torch.rand(count, 3, size, size),
        keys=tuple(str(i) for i in range(count)),
        image_features=F.normalize(torch.randn(count, SIZES.dim), dim=-1),
        labels=targets,
    )


def objective_of(method, **values) -> Phase:
    (phase,) = method.phases(method_options(method, values), 7, SIZES)
    assert phase.steps == 7
    return phase


TARGETS = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])


def test_the_objective_is_the_sum_of_its_terms() -> None:
    phase = objective_of(METHOD, **{"image-contrastive": "0.5"})
    assert phase.objective.needs_regions
    torch.manual_seed(0)
    outputs = Outputs(
        features=torch.randn(3, SIZES.dim, requires_grad=True),
        regions=torch.randn(3, 4, SIZES.dim, requires_grad=True),
    )
    class_features = torch.randn(10, SIZES.dim, requires_grad=True)
    batch = make_batch(TARGETS)
    loss = phase.objective(outputs, batch, class_features)
    probabilities = reference_probabilities(
        *(a.detach().double().numpy() for a in (outputs.regions, *class_features.chunk(2))), 0, 0.07
    )
    expected = reference_asymmetric(probabilities, TARGETS.numpy(), 2, 1, 0.05)
    assert loss.terms["classification"].item() == pytest.approx(expected, rel=1e-4)
    cosines = F.normalize(outputs.features, dim=-1) @ batch.image_features.T / 0.07
    labels = torch.arange(3)
    contrast = (F.cross_entropy(cosines, labels) + F.cross_entropy(cosines.T, labels)) / 2
    torch.testing.assert_close(loss.terms["image_contrastive"], contrast)
    torch.testing.assert_close(
        loss.total, loss.terms["classification"] + 0.5 * loss.terms["image_contrastive"]
    )
    loss.total.backward()
    reached = (outputs.features, outputs.regions, class_features, phase.objective.bias)
    assert all(tensor.grad.abs().sum() > 0 for tensor in reached)
    assert (class_features.grad.abs().sum(dim=1) > 0).all()


def test_image_contrast_can_be_off_and_needs_no_teacher_then() -> None:
    phase = objective_of(METHOD, **{"image-contrastive": "0"})
    outputs = Outputs(features=torch.randn(3, 8), regions=torch.randn(3, 4, 8))
    batch = Batch(images=torch.rand(3, 3, 4, 4), keys=("a", "b", "c"), labels=TARGETS)
    loss = phase.objective(outputs, batch, torch.randn(10, 8))
    assert "image_contrastive" not in loss.terms
    assert loss.total is loss.terms["classification"]


def test_what_the_objectives_lack_is_named() -> None:
    objective = objective_of(METHOD).objective
    outputs = Outputs(features=torch.randn(3, 8), regions=torch.randn(3, 4, 8))
    single = make_batch(torch.tensor([0, 1, 2]))
    with pytest.raises(AttarError, match="labels column"):
        objective(outputs, single, torch.randn(10, 8))
    with pytest.raises(AttarError, match="labels column"):
        objective_of(CLOSED_SET).objective(outputs, single, None)
    with pytest.raises(AttarError, match="regions"):
        objective(Outputs(features=torch.randn(3, 8)), make_batch(TARGETS), torch.randn(10, 8))
    with pytest.raises(AttarError, match="not 5 class features"):
        objective(outputs, make_batch(TARGETS), torch.randn(5, 8))


def test_closed_set_is_the_loss_of_its_own_logits() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64)
    loss = objective_of(CLOSED_SET).objective(Outputs(features=logits), make_batch(TARGETS), None)
    p = 1 / (1 + np.exp(-logits.numpy()))
    expected = reference_asymmetric(p, TARGETS.numpy(), 2, 1, 0.05)
    assert loss.total.item() == pytest.approx(expected)
    assert CLOSED_SET.head == "classes"


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": "0"}, {"image-contrastive": "-1"}, {"clip": "1"}, {"gamma-negative": "-2"}],
)
def test_wrong_options_are_refused(wrong) -> None:
    with pytest.raises(UsageError, match=f"--method.{next(iter(wrong))}"):
        method_options(METHOD, wrong)


def test_a_step_asks_a_real_student_for_regions() -> None:
    """Student, contexts and bias are all trained by one step."""
    torch.manual_seed(0)
    config = StudentConfig(weights="none", image_size=64)
    student = build_student("test_resnet", SIZES.dim, config)
    phase = METHOD.phases(MultiLabelOptions(), 1, SIZES)[0]
    prompts = FreePrompts(torch.randn(10, SIZES.dim))
    module = StepModule(student, phase, prompts, "fp32")
    module.set_modes()
    loss = module(make_batch(TARGETS, size=64))
    loss.total.backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert not [name for name, grad in gradients.items() if grad is None]
    assert gradients["class_features.features"].abs().sum() > 0
    assert gradients["objective.bias"] != 0
    regions = student.eval()(torch.rand(1, 3, 64, 64), regions=True).regions
    assert regions.shape[1] > 1


class FreePrompts(torch.nn.Module):
    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features = torch.nn.Parameter(features)

    def forward(self) -> torch.Tensor:
        return self.features
