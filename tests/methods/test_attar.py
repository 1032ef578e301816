"""attar's own entry: the sum against numpy, what unlabelled images follow, the gradients."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attar.errors import AttarError, UsageError
from attar.methods.attar import AttarObjective, AttarOptions
from attar.methods.base import Sizes
from attar.methods.registry import find_method
from attar.types import Batch, Loss, Outputs

Array = NDArray[np.float64]
B, C, D = 5, 4, 6
LABELS = [0, 3, -1, 1, 3]
SCALE = 50.0


def random(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


OWN, TEACHER, CLASSES = random(B, D, seed=0), random(B, D, seed=1), random(C, D, seed=2)


def loss_of(options: AttarOptions, own: torch.Tensor = OWN, labels: list[int] = LABELS) -> Loss:
    batch = Batch(
        images=torch.zeros(B, 3, 2, 2),
        keys=tuple(map(str, range(B))),
        image_features=TEACHER,
        labels=torch.tensor(labels),
    )
    return AttarObjective(options, SCALE)(Outputs(features=own), batch, CLASSES)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p: Array, q: Array) -> float:
    """Mean over rows of Σ p log(p / q), with 0 log 0 = 0."""
    safe = np.where(p > 0, p, 1.0)
    return float((p * (np.log(safe) - np.log(q))).sum(axis=-1).mean())


def reference(options: AttarOptions) -> dict[str, float]:
    s, v, t = unit(OWN.numpy()), unit(TEACHER.numpy()), unit(CLASSES.numpy())
    texts, target = [], []
    for i, y in enumerate(LABELS):
        own_words = softmax(SCALE * v[i] @ t.T)
        texts.append(t[y] if y >= 0 else unit(own_words @ t))
        share = options.label_share if y >= 0 else 0.0
        target.append(
            share * np.eye(C)[y] + (1 - share) * softmax(v[i] @ t.T / options.temperature)
        )
    scores = softmax(s @ t.T / options.temperature)
    wanted = softmax(v @ v.T / options.temperature)
    return {
        "image": float(np.mean(1 - (s * v).sum(axis=1))),
        "text": float(np.mean(1 - (s * np.array(texts)).sum(axis=1))),
        "scores": kl(np.array(target), scores),
        "geometry": 2 * kl(wanted, softmax(s @ v.T / options.temperature)),
    }


@pytest.mark.parametrize(
    "options",
    [
        AttarOptions(),
        AttarOptions(image=0.5, text=2.0, scores=3.0, geometry=0.25),
        AttarOptions(geometry=1.0, label_share=1.0, temperature=0.3),
        AttarOptions(label_share=0.0),
    ],
)
def test_the_sum_is_that_of_the_equation(options: AttarOptions) -> None:
    loss, expected = loss_of(options), reference(options)
    weights = {name: getattr(options, name) for name in expected}
    assert loss.terms.keys() == {name for name, weight in weights.items() if weight}
    for name, term in loss.terms.items():
        assert term.item() == pytest.approx(expected[name], abs=1e-9), name
    total = sum(weights[name] * value for name, value in expected.items())
    assert loss.total.item() == pytest.approx(total, abs=1e-9)


def test_a_student_that_is_the_teacher_pays_for_the_labels_alone() -> None:
    terms = loss_of(AttarOptions(geometry=1.0, label_share=0.0), own=3 * TEACHER).terms
    for name in ("image", "scores", "geometry"):
        assert terms[name].item() == pytest.approx(0, abs=1e-9), name
    assert terms["text"].item() > 0.1


def test_without_labels_no_label_matters() -> None:
    none = [-1] * B
    by_label = [loss_of(AttarOptions(label_share=x), labels=none).total for x in (0.0, 1.0)]
    assert torch.equal(*by_label)


def test_no_gradient_crosses_the_targets() -> None:
    own, teacher = OWN.clone().requires_grad_(True), TEACHER.clone().requires_grad_(True)
    batch = Batch(
        images=torch.zeros(B, 3, 2, 2),
        keys=("",) * B,
        image_features=teacher,
        labels=torch.tensor(LABELS),
    )
    # Text and image features are where the student is drawn to; targets and geometry are not.
    options = AttarOptions(image=0, text=1, label_share=0.5)
    AttarObjective(options, SCALE)(Outputs(features=own), batch, CLASSES).total.backward()
    assert own.grad is not None
    assert own.grad.abs().sum(dim=1).min() > 0
    assert teacher.grad is None


def test_numeric_gradient() -> None:
    options = AttarOptions(geometry=1.0, temperature=0.5)
    own = OWN.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: loss_of(options, own=x).total, (own,))


def test_one_phase_over_all_steps_from_a_fitted_projection() -> None:
    method = find_method("attar")
    sizes = Sizes(dim=D, trunk_width=8, num_classes=C, num_domains=2, logit_scale=SCALE)
    (phase,) = method.phases(AttarOptions(), 30, sizes)
    assert (phase.steps, phase.trainable) == (30, "all")
    assert isinstance(phase.objective, AttarObjective)
    assert phase.objective.scale == SCALE
    assert method.student == {"projection": "fitted"}
    assert phase.interpolation == 1
    (drawn_back,) = method.phases(AttarOptions(interpolation=0.7), 30, sizes)
    assert drawn_back.interpolation == 0.7


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image": -1.0}, "--method.image -1.0"),
        ({"scores": float("inf")}, "--method.scores inf"),
        ({"label_share": 1.5}, "--method.label-share 1.5"),
        ({"temperature": 0.0}, "--method.temperature 0.0"),
        ({"interpolation": 0.0}, "--method.interpolation 0.0"),
        ({"interpolation": 1.1}, "--method.interpolation 1.1"),
        ({"image": 0.0, "text": 0.0, "scores": 0.0, "geometry": 0.0}, "all other weights are 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        AttarOptions(**options)


def test_missing_class_features_are_named() -> None:
    batch = Batch(images=torch.zeros(1, 3, 2, 2), keys=("",))
    with pytest.raises(AttarError, match="attar needs class features"):
        AttarObjective(AttarOptions())(Outputs(features=OWN[:1]), batch, None)
