"""Each loss against a numpy reference written from the formula, and its invariants."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attar import losses

Array = NDArray[np.float64]
SHAPES = [(1, 3), (2, 2), (5, 8), (16, 4)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def reference_feature_mse(s: Array, v: Array) -> float:
    return float(np.mean([2 - 2 * (a @ b) for a, b in zip(unit(s), unit(v), strict=True)]))


def reference_alignment(s: Array, v: Array, t: Array, w: float) -> float:
    cos_image = np.mean(np.sum(unit(s) * unit(v), axis=1))
    cos_text = np.mean(np.sum(unit(s) * unit(t), axis=1))
    return float(-(w * cos_image + (1 - w) * cos_text))


def reference_kl(s: Array, t: Array, temperature: float) -> float:
    p, q = softmax(s / temperature), softmax(t / temperature)
    return float(np.mean(np.sum(q * (np.log(q) - np.log(p)), axis=1)) * temperature**2)


@pytest.mark.parametrize(("batch", "dim"), SHAPES)
def test_feature_mse(batch: int, dim: int) -> None:
    s, v = random(batch, dim), random(batch, dim, seed=1)
    assert losses.feature_mse(s, v).item() == pytest.approx(
        reference_feature_mse(s.numpy(), v.numpy()), abs=1e-10
    )


def test_feature_mse_by_hand() -> None:
    s = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    v = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert losses.feature_mse(s, v).item() == pytest.approx((2.0 + 0.0) / 2)
    assert losses.feature_mse(s[:1], -s[:1]).item() == pytest.approx(4.0)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize(("batch", "dim"), SHAPES)
def test_embedding_alignment(batch: int, dim: int, weight: float) -> None:
    s, v, t = random(batch, dim), random(batch, dim, seed=1), random(batch, dim, seed=2)
    assert losses.embedding_alignment(s, v, t, weight).item() == pytest.approx(
        reference_alignment(s.numpy(), v.numpy(), t.numpy(), weight), abs=1e-10
    )


def test_image_alignment_is_feature_mse_up_to_scale_and_offset() -> None:
    s, v = random(6, 5), random(6, 5, seed=1)
    aligned = losses.embedding_alignment(s, v, v, image_weight=1.0)
    assert losses.feature_mse(s, v).item() == pytest.approx(2 + 2 * aligned.item())


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(("batch", "classes"), SHAPES)
def test_kl_distillation(batch: int, classes: int, temperature: float) -> None:
    s, t = random(batch, classes) / 3, random(batch, classes, seed=1) / 3
    expected = reference_kl(s.numpy(), t.numpy(), temperature)
    assert losses.kl_distillation(s, t, temperature).item() == pytest.approx(expected, abs=1e-9)


def test_kl_is_zero_for_equal_logits_and_unmoved_by_an_offset() -> None:
    t = random(4, 6)
    assert losses.kl_distillation(t + 7.0, t, 2.0).item() == pytest.approx(0, abs=1e-12)


def test_kl_gradient_scale_hardly_depends_on_the_temperature() -> None:
    t = random(8, 10)

    def gradient_norm(temperature: float) -> float:
        s = random(8, 10, seed=3).requires_grad_()
        losses.kl_distillation(s, t, temperature).backward()
        assert s.grad is not None
        return float(s.grad.norm())

    # For T → ∞ the gradient tends to the difference of centred logits over C: a finite limit.
    assert gradient_norm(200.0) == pytest.approx(gradient_norm(100.0), rel=0.05)
    assert gradient_norm(100.0) > 0.01


def call_all(s: torch.Tensor, v: torch.Tensor) -> list[torch.Tensor]:
    return [
        losses.feature_mse(s, v),
        losses.embedding_alignment(s, v, v.flip(0)),
        losses.kl_distillation(s, v, 2.0),
    ]


def test_every_loss_is_a_scalar_of_its_input_dtype_and_changes_nothing() -> None:
    for dtype in (torch.float32, torch.float64):
        s, v = random(4, 6).to(dtype), random(4, 6, seed=1).to(dtype)
        before = s.clone(), v.clone()
        for loss in call_all(s, v):
            assert loss.ndim == 0
            assert loss.dtype == dtype
        assert torch.equal(s, before[0])
        assert torch.equal(v, before[1])


def test_gradients_are_right() -> None:
    v = random(3, 4, seed=1)
    for index in range(3):
        s = random(3, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, i=index: call_all(x, v)[i], (s,))


def test_feature_losses_ignore_lengths() -> None:
    s, v = random(5, 7), random(5, 7, seed=1)
    lengths = torch.rand(5, 1, dtype=torch.float64) + 0.5
    for one, other in zip(call_all(s, v)[:2], call_all(s * lengths, 3 * v)[:2], strict=True):
        assert one.item() == pytest.approx(other.item())
