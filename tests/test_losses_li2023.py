"""The losses of Li et al. against numpy loops written from the equations, and their gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar import losses
from attar.errors import UsageError

Array = NDArray[np.float64]
SEEDS = range(6)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


class Drawn:
    """Features and labels of a random shape; some labels are -1, some images are twins."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.batch, self.classes, self.dim = (int(rng.integers(low, 9)) for low in (1, 2, 2))
        self.s, self.v, self.c = (random(self.batch, self.dim, seed=3 * seed + i) for i in range(3))
        self.t = random(self.classes, self.dim, seed=50 + seed)
        self.labels = torch.from_numpy(rng.integers(-1, self.classes, self.batch))
        if seed % 2 and self.batch > 2:
            for features in (self.s, self.v, self.c):
                features[1] = features[0]
            self.labels[1] = self.labels[0]


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def probabilities(logits: list[float]) -> list[float]:
    exponentials = [math.exp(x) for x in logits]
    return [e / sum(exponentials) for e in exponentials]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def classification(s: Array, t: Array, labels: list[int], tau: float) -> float:
    terms = []
    for i, y in enumerate(labels):
        if y >= 0:
            terms.append(-math.log(probabilities([cosine(s[i], c) / tau for c in t])[y]))
    return mean(terms)


def image_contrastive(s: Array, v: Array, tau: float, both: bool) -> float:
    there, back = [], []
    for i in range(len(s)):
        there.append(-math.log(probabilities([cosine(s[i], x) / tau for x in v])[i]))
        back.append(-math.log(probabilities([cosine(x, v[i]) / tau for x in s])[i]))
    return (mean(there) + mean(back)) / 2 if both else mean(there)


def printed_eq_3(s: Array, v: Array, tau: float) -> float:
    terms = []
    for i in range(len(s)):
        unit = s[i] / np.linalg.norm(s[i])
        apart = [float(((unit - x / np.linalg.norm(x)) ** 2).sum()) for x in v]
        terms.append(-math.log(probabilities([-d / tau for d in apart])[i]))
    return mean(terms)


def nearest_class(v: Array, t: Array) -> int:
    scores = [cosine(v, c) for c in t]
    return scores.index(max(scores))


def proximity(
    s: Array, v: Array, t: Array, labels: list[int] | None, k: int, tau: float, average: str
) -> float:
    terms = []
    for i in range(len(s)):
        if labels is not None and nearest_class(v[i], t) != labels[i]:
            continue
        order = sorted(range(len(t)), key=lambda c, i=i: (-cosine(v[i], t[c]), c))[:k]
        p = probabilities([cosine(v[i], t[c]) / tau for c in order])
        q = probabilities([cosine(s[i], t[c]) / tau for c in order])
        terms.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(terms) / len(s) if average == "batch" else mean(terms)


def caption_contrastive(
    s: Array, c: Array, labels: list[int], tau: float, with_positive: bool
) -> float:
    terms = []
    for i, y in enumerate(labels):
        others = [j for j in range(len(s)) if j != i and not (y >= 0 and labels[j] == y)]
        negatives = [math.exp(cosine(s[i], c[j]) / tau) for j in others]
        positive = math.exp(cosine(s[i], c[i]) / tau)
        if with_positive:
            terms.append(-math.log(positive / (positive + sum(negatives))))
        elif negatives:
            terms.append(-math.log(positive / sum(negatives)))
    return mean(terms)


def close(value: float) -> object:
    return pytest.approx(value, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("tau", [0.07, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_classification(seed: int, tau: float) -> None:
    d = Drawn(seed)
    found = losses.classification(d.s, d.t, d.labels, tau).item()
    assert found == close(classification(d.s.numpy(), d.t.numpy(), d.labels.tolist(), tau))


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_image_contrastive(seed: int, both: bool) -> None:
    d = Drawn(seed)
    found = losses.image_contrastive(d.s, d.v, 0.07, both).item()
    assert found == close(image_contrastive(d.s.numpy(), d.v.numpy(), 0.07, both))


@pytest.mark.parametrize("seed", SEEDS)
def test_image_contrastive_as_printed_is_one_way_at_half_the_temperature(seed: int) -> None:
    d = Drawn(seed)
    found = losses.image_contrastive(d.s, d.v, 0.14 / 2, bidirectional=False).item()
    assert found == close(printed_eq_3(d.s.numpy(), d.v.numpy(), 0.14))


@pytest.mark.parametrize("seed", SEEDS)
def test_dropped_samples_are_no_negatives_either(seed: int) -> None:
    d = Drawn(seed)
    keep = torch.arange(d.batch) % 3 != 1
    found = losses.image_contrastive(d.s, d.v, keep=keep).item()
    kept = keep.numpy()
    assert found == close(image_contrastive(d.s.numpy()[kept], d.v.numpy()[kept], 0.07, True))


@pytest.mark.parametrize("average", ["survivors", "batch"])
@pytest.mark.parametrize("k", [1, 2, 3, 256])
@pytest.mark.parametrize("seed", SEEDS)
def test_proximity(seed: int, k: int, average: str) -> None:
    d = Drawn(seed)
    s, v, t = d.s.numpy(), d.v.numpy(), d.t.numpy()
    nearest = torch.tensor([nearest_class(x, t) for x in v])
    some = torch.where(torch.arange(d.batch) % 3 == 0, nearest, d.labels)
    for labels in (None, d.labels, some, nearest):
        found = losses.proximity(d.s, d.v, d.t, labels, k, average=average).item()
        listed = None if labels is None else labels.tolist()
        assert found == close(proximity(s, v, t, listed, k, 0.07, average))


def test_the_two_averages_of_proximity_differ() -> None:
    s, v, t = random(4, 3), random(4, 3, seed=1), random(5, 3, seed=2)
    labels = torch.tensor([nearest_class(x, t.numpy()) for x in v.numpy()])
    labels[0], labels[1] = -1, (labels[1] + 1) % 5
    over_batch = losses.proximity(s, v, t, labels, average="batch").item()
    assert losses.proximity(s, v, t, labels).item() == pytest.approx(2 * over_batch)
    assert over_batch > 0


@pytest.mark.parametrize("with_positive", [True, False])
@pytest.mark.parametrize("tau", [0.07, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_caption_contrastive(seed: int, tau: float, with_positive: bool) -> None:
    d = Drawn(seed)
    found = losses.caption_contrastive(d.s, d.c, d.labels, tau, with_positive).item()
    s, c = d.s.numpy(), d.c.numpy()
    assert found == close(caption_contrastive(s, c, d.labels.tolist(), tau, with_positive))


def test_captions_by_hand() -> None:
    east, north = [1.0, 0.0], [0.0, 1.0]
    s = torch.tensor([east, east, east], dtype=torch.float64)
    captions = torch.tensor([east, north, north], dtype=torch.float64)
    one_class = torch.tensor([0, 0, 1])
    # Image 0: cosine 1 to its own; caption 1 is of its class, caption 2 is at cosine 0.
    own, other = math.e, 1.0
    first, second = -math.log(own / (own + other)), -math.log(1 / (1 + 1))
    third = -math.log(1 / (math.e + 1 + 1))
    found = losses.caption_contrastive(s, captions, one_class, temperature=1.0).item()
    assert found == close((first + second + third) / 3)
    printed = losses.caption_contrastive(s, captions, one_class, 1.0, False).item()
    assert printed == close((-math.log(own / other) + 0 - math.log(1 / (math.e + 1))) / 3)


def test_a_caption_without_a_label_masks_nobody() -> None:
    s, c = random(4, 3), random(4, 3, seed=1)
    unlabelled = losses.caption_contrastive(s, c, torch.full((4,), -1))
    assert unlabelled.item() == losses.caption_contrastive(s, c, torch.arange(4)).item()
    assert unlabelled.item() > losses.caption_contrastive(s, c, torch.zeros(4).long()).item() == 0


def test_aligned_is_the_teachers_first_nearest_class() -> None:
    t = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    v = torch.tensor([[3.0, 1.0], [3.0, 1.0], [0.0, 2.0], [0.0, 2.0], [1.0, 0.0]])
    found = losses.aligned(v, t, torch.tensor([0, 2, 1, 0, -1]))
    assert found.dtype == torch.bool
    assert found.tolist() == [True, False, True, False, False]


LABELS = torch.tensor([0, 2, 2, -1, 1])
Call = Callable[[Tensor, Tensor, Tensor], Tensor]
CALLS: dict[str, Call] = {
    "classification": lambda s, v, t: losses.classification(s, t, LABELS, 0.5),
    "image_contrastive": lambda s, v, t: losses.image_contrastive(s, v, 0.5),
    "one direction": lambda s, v, t: losses.image_contrastive(s, v, 0.5, False),
    "kept": lambda s, v, t: losses.image_contrastive(s, v, 0.5, keep=LABELS > 0),
    "proximity": lambda s, v, t: losses.proximity(s, v, t, None, 2, 0.5),
    "survivors": lambda s, v, t: losses.proximity(s, v, t, nearest(v, t), 2, 0.5),
    "batch": lambda s, v, t: losses.proximity(s, v, t, nearest(v, t), 9, 0.5, "batch"),
    "captions": lambda s, v, t: losses.caption_contrastive(s, v, LABELS, 0.5),
    "printed captions": lambda s, v, t: losses.caption_contrastive(s, v, LABELS, 0.5, False),
}
TEXT_IS_LEARNT = ("classification", "proximity", "survivors", "batch")


def nearest(v: Tensor, t: Tensor) -> Tensor:
    """Return labels that the teacher agrees with, but for the first sample."""
    rows = torch.nn.functional.normalize(v.detach()) @ torch.nn.functional.normalize(t.detach()).T
    return torch.cat([torch.tensor([-1]), rows.argmax(dim=1)[1:]])


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return random(5, 4), random(5, 4, seed=1), random(3, 4, seed=2)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_right(name: str) -> None:
    s, v, t = inputs()
    s.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CALLS[name](x, v, t), (s,))
    if name in TEXT_IS_LEARNT:
        t.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, y: CALLS[name](x, v, y), (s, t))


@pytest.mark.parametrize("name", CALLS)
def test_gradient_reaches_the_student_and_never_the_teachers_image_features(name: str) -> None:
    s, v, t = (x.requires_grad_() for x in inputs())
    CALLS[name](s, v, t).backward()
    assert s.grad is not None
    assert s.grad.abs().sum() > 0
    assert v.grad is None
    assert (t.grad is not None) == (name in TEXT_IS_LEARNT)


def test_learnt_prompts_are_reached_through_the_teachers_side_too() -> None:
    s, v, t = inputs()
    t.requires_grad_()
    losses.proximity(s, v, t).backward()
    # With the student where the teacher is, both sides move alike: the divergence stays zero.
    reached = t.grad
    assert reached is not None
    assert reached.abs().sum() > 0
    t.grad = None
    losses.proximity(v, v, t).backward()
    assert t.grad is not None
    assert t.grad.abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CALLS)
def test_a_loss_is_a_scalar_of_its_input_dtype_and_changes_nothing(
    name: str, dtype: torch.dtype
) -> None:
    given = [x.to(dtype) for x in inputs()]
    before = [x.clone() for x in given]
    loss = CALLS[name](*given)
    assert loss.ndim == 0
    assert loss.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert CALLS[name](3 * given[0], 0.1 * given[1], 7 * given[2]).item() == pytest.approx(
        loss.item(), rel=1e-4
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda s, v, t: losses.classification(s, t, torch.full((5,), -1)),
        lambda s, v, t: losses.image_contrastive(s, v, keep=torch.zeros(5, dtype=torch.bool)),
        lambda s, v, t: losses.proximity(s, v, t, torch.full((5,), -1)),
        lambda s, v, t: losses.proximity(s, v, t, torch.full((5,), -1), average="batch"),
        lambda s, v, t: losses.caption_contrastive(s, v, torch.zeros(5).long()),
        lambda s, v, t: losses.caption_contrastive(s, v, torch.zeros(5).long(), 0.07, False),
        lambda s, v, t: losses.classification(s[:0], t, LABELS[:0]),
        lambda s, v, t: losses.image_contrastive(s[:0], v[:0]),
        lambda s, v, t: losses.image_contrastive(s[:0], v[:0], bidirectional=False),
        lambda s, v, t: losses.proximity(s[:0], v[:0], t),
        lambda s, v, t: losses.proximity(s[:0], v[:0], t, LABELS[:0], 1),
        lambda s, v, t: losses.caption_contrastive(s[:0], v[:0], LABELS[:0]),
        lambda s, v, t: losses.caption_contrastive(s[:0], v[:0], LABELS[:0], 0.07, False),
        lambda s, v, t: losses.image_contrastive(s[:1], v[:1]),
        lambda s, v, t: losses.caption_contrastive(s[:1], v[:1], LABELS[:1]),
        lambda s, v, t: losses.caption_contrastive(s[:1], v[:1], LABELS[:1], 0.07, False),
        lambda s, v, t: losses.proximity(s, v, t[:1]),
    ],
)
def test_nothing_to_learn_from_is_a_zero_that_back_propagates(call: Call) -> None:
    s, v, t = inputs()
    s.requires_grad_()
    loss = call(s, v, t)
    assert loss.item() == 0
    loss.backward()
    assert s.grad is not None
    assert torch.equal(s.grad, torch.zeros_like(s))


def test_equal_classes_share_the_top_k_by_index() -> None:
    t = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    s, v = random(3, 2), torch.tensor([[1.0, 0.2]], dtype=torch.float64).repeat(3, 1)
    for k in (1, 2, 3, 4, 9):
        found = losses.proximity(s, v, t, torch.ones(3).long(), k).item()
        expected = proximity(s.numpy(), v.numpy(), t.numpy(), [1, 1, 1], k, 0.07, "survivors")
        assert found == close(expected)


def test_the_defaults() -> None:
    d = Drawn(2)
    labels = d.labels
    assert torch.equal(
        losses.classification(d.s, d.t, labels), losses.classification(d.s, d.t, labels, 0.07)
    )
    assert torch.equal(
        losses.image_contrastive(d.s, d.v), losses.image_contrastive(d.s, d.v, 0.07, True)
    )
    assert torch.equal(
        losses.proximity(d.s, d.v, d.t),
        losses.proximity(d.s, d.v, d.t, None, 256, 0.07, "survivors"),
    )
    assert torch.equal(
        losses.caption_contrastive(d.s, d.c, labels),
        losses.caption_contrastive(d.s, d.c, labels, 0.07, True),
    )


def test_wrong_use_is_refused() -> None:
    s, v, t = inputs()
    with pytest.raises(UsageError, match="k = 0"):
        losses.proximity(s, v, t, k=0)
    with pytest.raises(UsageError, match="unknown average 'survivor': did you mean 'survivors'"):
        losses.proximity(s, v, t, average="survivor")  # type: ignore[arg-type]
