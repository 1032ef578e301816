"""DIME-FM's losses against numpy references written from the formulas, and their invariants."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attar import losses

Array = NDArray[np.float64]
SHAPES = [(1, 1, 3), (2, 5, 2), (6, 3, 8), (7, 7, 4)]
"""Images, sentences, dimensions."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def divergence(wanted: Array, own: Array, temperature: float) -> float:
    """Mean over rows of KL(softmax(wanted/T) ‖ softmax(own/T)), one row after the other."""
    total = 0.0
    for a, b in zip(wanted / temperature, own / temperature, strict=True):
        log_p = a - (a.max() + np.log(np.sum(np.exp(a - a.max()))))
        log_q = b - (b.max() + np.log(np.sum(np.exp(b - b.max()))))
        total += float(np.dot(np.exp(log_p), log_p - log_q))
    return total / len(own)


def reference_scores(u: Array, v: Array, t: Array, temperature: float, scale: float) -> float:
    u, v, t = unit(u), unit(v), unit(t)
    forth = divergence(scale * v @ t.T, scale * u @ t.T, temperature)
    return forth + divergence(scale * t @ v.T, scale * t @ u.T, temperature)


def reference_pseudo(u: Array, v: Array, temperature: float, scale: float) -> float:
    u, v = unit(u), unit(v)
    return 2 * divergence(scale * v @ v.T, scale * u @ v.T, temperature)


def reference_distances(u: Array, v: Array, temperature: float, scale: float) -> float:
    u, v = unit(u), unit(v)
    return 2 * divergence(scale * v @ v.T, scale * u @ u.T, temperature)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 7.0])
@pytest.mark.parametrize(("images", "sentences", "dim"), SHAPES)
def test_equal_to_the_references(
    images: int, sentences: int, dim: int, temperature: float, scale: float
) -> None:
    u, v = random(images, dim), random(images, dim, seed=1)
    t = random(sentences, dim, seed=2)
    u_, v_, t_ = u.numpy(), v.numpy(), t.numpy()
    options = {"temperature": temperature, "scale": scale}
    found = [
        losses.score_distillation(u, v, t, **options),
        losses.pseudo_score_distillation(u, v, **options),
        losses.distance_preservation(u, v, **options),
    ]
    expected = [
        reference_scores(u_, v_, t_, temperature, scale),
        reference_pseudo(u_, v_, temperature, scale),
        reference_distances(u_, v_, temperature, scale),
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.item() == pytest.approx(other, rel=1e-10, abs=1e-9)


def test_defaults_are_the_official_temperatures_and_scale() -> None:
    u, v, t = random(4, 6), random(4, 6, seed=1), random(5, 6, seed=2)
    u_, v_, t_ = u.numpy(), v.numpy(), t.numpy()
    assert losses.score_distillation(u, v, t).item() == pytest.approx(
        reference_scores(u_, v_, t_, 1.0, 100.0)
    )
    assert losses.pseudo_score_distillation(u, v).item() == pytest.approx(
        reference_pseudo(u_, v_, 3.0, 100.0)
    )
    assert losses.distance_preservation(u, v).item() == pytest.approx(
        reference_distances(u_, v_, 7.0, 100.0)
    )


def test_by_hand() -> None:
    """Teacher on one axis, student on the other; ln σ and its mirror, worked out on paper."""
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    u = v.flip(0)
    # Each row of v vᵀ is (1, 0) and of u vᵀ (0, 1): KL = tanh(1/2) at scale and temperature 1.
    swapped = np.tanh(0.5)
    one = {"temperature": 1.0, "scale": 1.0}
    assert losses.pseudo_score_distillation(u, v, **one).item() == pytest.approx(2 * swapped)
    assert losses.score_distillation(u, v, v, **one).item() == pytest.approx(2 * swapped)
    # The student's images are as far from each other as the teacher's.
    assert losses.distance_preservation(u, v, **one).item() == pytest.approx(0, abs=1e-12)


Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
TEXTS = random(5, 4, seed=2)
TERMS: dict[str, Term] = {
    "score": lambda u, v: losses.score_distillation(u, v, TEXTS.to(u.dtype)),
    "pseudo": losses.pseudo_score_distillation,
    "distance": losses.distance_preservation,
}


@pytest.mark.parametrize("name", TERMS)
def test_zero_for_a_student_that_equals_its_teacher(name: str) -> None:
    v = random(6, 4)
    assert TERMS[name](2 * v, v).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", TERMS)
def test_positive_and_blind_to_lengths_and_order(name: str) -> None:
    u, v = random(6, 4), random(6, 4, seed=1)
    loss = TERMS[name](u, v).item()
    lengths = torch.rand(6, 1, dtype=torch.float64) + 0.5
    assert loss > 0
    assert TERMS[name](u * lengths, 3 * v).item() == pytest.approx(loss)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert TERMS[name](u[order], v[order]).item() == pytest.approx(loss)


@pytest.mark.parametrize("name", TERMS)
def test_gradients_are_right(name: str) -> None:
    v = random(3, 4, seed=1)
    u = random(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: TERMS[name](x, v), (u,))


def test_no_gradient_reaches_the_teacher() -> None:
    u, v = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    t = random(5, 4, seed=2).requires_grad_()
    total = losses.score_distillation(u, v, t) + losses.pseudo_score_distillation(u, v)
    (total + losses.distance_preservation(u, v)).backward()
    assert u.grad is not None
    assert u.grad.abs().sum() > 0
    assert v.grad is None
    assert t.grad is None


@pytest.mark.parametrize("name", TERMS)
def test_no_image_at_all_is_a_zero_that_back_propagates(name: str) -> None:
    u = torch.zeros(0, 4, requires_grad=True)
    loss = TERMS[name](u, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0
    assert u.grad is not None


def test_no_sentence_at_all_is_a_zero_that_back_propagates() -> None:
    u = random(3, 4).requires_grad_()
    loss = losses.score_distillation(u, random(3, 4, seed=1), torch.zeros(0, 4).double())
    loss.backward()
    assert loss.item() == 0
    assert u.grad is not None
    assert u.grad.abs().sum() == 0


@pytest.mark.parametrize("name", TERMS)
def test_a_distribution_with_all_its_mass_in_one_place_stays_finite(name: str) -> None:
    """At scale 100 and opposite vectors, probabilities underflow in float32."""
    v = torch.tensor([[1.0, 0.0, 0, 0], [-1.0, 0.0, 0, 0], [0.0, 1.0, 0, 0]])
    u = (-v).requires_grad_()
    loss = TERMS[name](u, v)
    loss.backward()
    assert torch.isfinite(loss)
    assert u.grad is not None
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TERMS)
def test_a_scalar_of_its_input_dtype_that_changes_nothing(name: str, dtype: torch.dtype) -> None:
    u, v = random(4, 4).to(dtype), random(4, 4, seed=1).to(dtype)
    before = u.clone(), v.clone()
    loss = TERMS[name](u, v)
    assert loss.ndim == 0
    assert loss.dtype == dtype
    assert torch.equal(u, before[0])
    assert torch.equal(v, before[1])
