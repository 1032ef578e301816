"""Baselines: each term against a reference in numpy, and where its gradient goes."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from attar.errors import AttarError, UsageError
from attar.methods.base import Objective, Sizes
from attar.methods.miro import MIRO
from attar.methods.registry import find_method, method_options
from attar.methods.scmd import hardest
from attar.types import Batch, Loss, Outputs

Array = NDArray[np.float64]
B, C, S, D, W = 6, 5, 3, 8, 12
SIZES = Sizes(dim=D, trunk_width=W, num_classes=C, num_domains=S, teacher_dim=D)
LABELS = [0, 3, -1, 1, 4, 3]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_batch(labels: list[int] = LABELS) -> Batch:
    return Batch(
        images=torch.zeros(len(labels), 3, 2, 2),
        keys=tuple(map(str, range(len(labels)))),
        image_features=torch.nn.functional.normalize(random(len(labels), D, seed=1), dim=-1),
        labels=torch.tensor(labels),
        streams={"domain_texts": random(C, S, D, seed=2)},
    )


def objectives(name: str, options: Mapping[str, object] | None = None) -> list[Objective]:
    method = find_method(name)
    phases = method.phases(method_options(method, options or {}), 100, SIZES)
    return [phase.objective.double() for phase in phases]


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference_ce(z: Array, labels: list[int]) -> float:
    known = [i for i, y in enumerate(labels) if y >= 0]
    return float(np.mean([-np.log(softmax(z[i])[labels[i]]) for i in known]))


def reference_kl(z: Array, teacher: Array, temperature: float) -> float:
    """T² · mean over rows of Σ_c p log(p / q)."""
    p, q = softmax(teacher / temperature), softmax(z / temperature)
    rows = [
        sum(a * (math.log(a) - math.log(b)) for a, b in zip(*row, strict=True))
        for row in zip(p, q, strict=True)
    ]
    return float(np.mean(rows)) * temperature**2


def teacher_logits(batch: Batch, classes: torch.Tensor) -> Array:
    assert batch.image_features is not None
    return 100 * unit(batch.image_features.numpy()) @ unit(classes.numpy()).T


def check(loss: Loss, total: float, terms: Mapping[str, float]) -> None:
    assert loss.total.item() == pytest.approx(total, rel=1e-5, abs=1e-9)
    found = {name: term.item() for name, term in loss.terms.items()}
    assert found == pytest.approx(dict(terms), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 3.0), (2.0, 1.0), (0.0, 5.0)])
def test_kd(weight: float, temperature: float) -> None:
    (objective,) = objectives("kd", {"weight": weight, "temperature": temperature})
    batch, classes, z = make_batch(), random(C, D, seed=3), random(B, C, seed=4)
    ce = reference_ce(z.numpy(), LABELS)
    kl = reference_kl(z.numpy(), teacher_logits(batch, classes), temperature)
    loss = objective(Outputs(features=z), batch, classes)
    check(loss, ce + weight * kl, {"cross_entropy": ce, "distillation": kl})


def test_kd_is_least_where_the_student_has_the_teachers_distribution() -> None:
    # Probabilities in the place of log-probabilities, as in the official code, break this.
    (objective,) = objectives("kd")
    batch, classes = make_batch([-1] * B), random(C, D, seed=3)
    same = torch.from_numpy(teacher_logits(batch, classes)).requires_grad_()
    loss = objective(Outputs(features=same), batch, classes)
    assert loss.terms["distillation"].item() == pytest.approx(0, abs=1e-9)
    loss.total.backward()
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-9


def test_simkd_is_the_mean_over_all_numbers() -> None:
    (objective,) = objectives("simkd")
    batch, f = make_batch(), random(B, D, seed=5)
    assert batch.image_features is not None
    v = batch.image_features.numpy()
    mse = sum((f.numpy()[i, j] - v[i, j]) ** 2 for i in range(B) for j in range(D)) / (B * D)
    check(objective(Outputs(features=f), batch, None), mse, {"mse": mse})


def test_text2concept_is_least_squares() -> None:
    (objective,) = objectives("text2concept")
    batch, f = make_batch(), random(B, D, seed=5)
    assert batch.image_features is not None
    rows = ((f.numpy() - batch.image_features.numpy()) ** 2).sum(axis=1)
    expected = float(rows.mean())
    check(objective(Outputs(features=f), batch, None), expected, {"squared_distance": expected})


def test_miro_over_several_layers() -> None:
    shapes = [(B, 4, 3, 2), (B, 7, 5), (B, W)]
    objective = MIRO(0.1, [4, 5, W]).double()
    with torch.no_grad():
        for i, scale in enumerate(objective.scales):
            scale.copy_(random(len(scale), seed=i))
    own = [random(*shape, seed=6) for shape in shapes]
    first = [random(*shape, seed=7) for shape in shapes]
    z = random(B, C, seed=4)
    near = 0.0
    for f, f0, scale in zip(own, first, objective.scales, strict=True):
        variance = np.log1p(np.exp(scale.detach().numpy())) + 1e-5
        if f.ndim == 4:
            variance = variance[:, None, None]
        near += 0.5 * np.mean((f.numpy() - f0.numpy()) ** 2 / variance + np.log(variance))
    ce = reference_ce(z.numpy(), LABELS)
    loss = objective(
        Outputs(features=z, layers=tuple(own), trunk=own[2]),
        make_batch(),
        None,
        Outputs(features=z, layers=tuple(first), trunk=first[2]),
    )
    check(loss, ce + 0.1 * near, {"cross_entropy": ce, "anchor": near})


def test_miro_begins_at_a_variance_of_a_tenth_and_learns_it_ten_times_as_fast() -> None:
    (objective,) = objectives("miro")
    assert isinstance(objective, MIRO)
    (scale,) = objective.scales
    variance = torch.nn.functional.softplus(scale.double()) + 1e-5
    torch.testing.assert_close(variance, torch.full_like(variance, 0.1), rtol=1e-5, atol=0)
    assert find_method("miro").training["objective_lr_factor"] == 10
    own, first = random(B, W, seed=6).requires_grad_(), random(B, W, seed=7).requires_grad_()
    z = random(B, C).requires_grad_()
    outputs, anchor = Outputs(features=z, trunk=own), Outputs(features=z.detach(), trunk=first)
    objective(outputs, make_batch(), None, anchor).total.backward()
    assert own.grad is not None
    assert own.grad.abs().sum() > 0
    assert scale.grad is not None
    assert scale.grad.abs().sum() > 0
    assert first.grad is None
    with pytest.raises(AttarError, match="initial student"):
        objective(outputs, make_batch(), None)


def test_rise() -> None:
    options = {"label_weight": 0.2, "teacher_weight": 0.8, "text_weight": 0.5}
    (objective,) = objectives("rise", options)
    batch, classes, f = make_batch(), random(C, D, seed=3), random(B, D, seed=5)
    texts, t = batch.streams["domain_texts"].numpy(), unit(classes.numpy())
    z = f.numpy() @ t.T
    known = [i for i, y in enumerate(LABELS) if y >= 0]
    far, relative = [], []
    for i in known:
        t_y, own = t[LABELS[i]], unit(f.numpy()[i])
        far.append(1 - own @ t_y)
        directions = [unit(texts[LABELS[i], d]) for d in range(S)]
        student = softmax(np.array([own @ direction for direction in directions]))
        wanted = softmax(np.array([t_y @ direction for direction in directions]))
        relative += list((student - wanted) ** 2)
    terms = {
        "cross_entropy": reference_ce(z, LABELS),
        "distillation": reference_kl(z, teacher_logits(batch, classes), 3.0),
        "absolute": float(np.mean(far)),
        "relative": float(np.mean(relative)),
    }
    total = 0.2 * terms["cross_entropy"] + 0.8 * terms["distillation"]
    total += 0.5 * terms["absolute"] + 10 * 0.5 * terms["relative"]
    check(objective(Outputs(features=f), batch, classes), total, terms)


def test_rise_asks_for_domains_only_where_it_takes_their_names() -> None:
    method = find_method("rise")
    assert "domains" in method.needs_with(method_options(method, {}))
    assert method.domain_texts(method_options(method, {})) == ()
    words = ("dark photo", "good photo")
    named = {"anchors": "[dark photo, good photo]"}
    for values, wanted in ((named, words), ({"text_weight": 0}, None)):
        options = method_options(method, values)
        assert "domains" not in method.needs_with(options)
        assert method.domain_texts(options) == wanted
    batch = Batch(**{**vars(make_batch()), "streams": {}})
    (objective,) = objectives("rise")
    with pytest.raises(AttarError, match="rise needs the text features"):
        objective(Outputs(features=random(B, D)), batch, random(C, D, seed=3))
    (objective,) = objectives("rise", {"text_weight": 0})
    loss = objective(Outputs(features=random(B, D)), batch, random(C, D, seed=3))
    assert "relative" not in loss.terms


def reference_scmd(
    kept: list[int], z: Array, trunk: Array, weight: Array, batch: Batch, classes: torch.Tensor
) -> dict[str, float]:
    projected = unit(trunk @ weight.T)
    cross_modal = projected @ unit(classes.numpy()).T / 0.07
    teacher = teacher_logits(batch, classes)
    return {
        "cross_entropy": reference_ce(z[kept], [LABELS[i] for i in kept]),
        "logits": reference_kl(z[kept], teacher[kept], 3.0),
        "cross_modal": reference_kl(cross_modal[kept], teacher[kept], 3.0),
    }


def test_scmd_first_on_the_hardest_then_on_all() -> None:
    hard, everything = objectives("scmd", {"hard_share": 0.5})
    batch, classes = make_batch(), random(C, D, seed=3)
    z, trunk = random(B, C, seed=4), random(B, W, seed=8)
    assert hard.head is everything.head
    weight = hard.head.projector.weight.detach().numpy()
    known = [i for i, y in enumerate(LABELS) if y >= 0]
    losses = {i: -math.log(softmax(z.numpy()[i])[LABELS[i]]) for i in known}
    hardest_two = sorted(known, key=losses.__getitem__)[-2:]  # floor(0.5 * 5)
    outputs = Outputs(features=z, trunk=trunk)
    for objective, kept in ((hard, hardest_two), (everything, known)):
        terms = reference_scmd(kept, z.numpy(), trunk.numpy(), weight, batch, classes)
        total = terms["cross_entropy"] + 0.5 * terms["logits"] + 0.5 * terms["cross_modal"]
        check(objective(outputs, batch, classes), total, terms)


def test_scmd_spends_the_last_quarter_on_whole_batches() -> None:
    method = find_method("scmd")
    phases = method.phases(method_options(method, {}), 200, SIZES)
    assert [(p.name, p.steps, p.objective.share) for p in phases] == [
        ("hard", 150, 0.2),
        ("all", 50, 1.0),
    ]
    (only,) = method.phases(method_options(method, {"full_share": 1}), 200, SIZES)
    assert only.name == "all"


def test_scmd_trains_both_heads_and_bounds_its_scale() -> None:
    hard, everything = objectives("scmd")
    z, trunk = random(B, C, seed=4).requires_grad_(), random(B, W, seed=8).requires_grad_()
    everything(Outputs(features=z, trunk=trunk), make_batch(), random(C, D)).total.backward()
    for tensor in (z, trunk, everything.head.projector.weight, everything.head.log_scale):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
    assert everything.head.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        everything.head.log_scale.fill_(20.0)
        everything.head.log_scale.grad.zero_()
    logits = everything.head(trunk, random(C, D))
    assert logits.abs().max() <= 100 + 1e-9
    logits.square().sum().backward()
    assert everything.head.log_scale.grad.abs() > 0  # it may come back
    unlabelled = hard(Outputs(features=z, trunk=trunk), make_batch([-1] * B), random(C, D))
    assert unlabelled.total.item() == 0
    unlabelled.total.backward()


@pytest.mark.parametrize(("share", "kept"), [(0.2, 1), (0.4, 2), (0.5, 2), (0.99, 4), (1.0, 5)])
def test_the_hardest_are_counted_down(share: float, kept: int) -> None:
    z, labels = random(B, C, seed=4), torch.tensor(LABELS)
    found = hardest(z, labels, share).tolist()
    assert len(found) == kept
    assert 2 not in found  # without a label


def test_the_probe_comes_first() -> None:
    method = find_method("lp-ft")
    probe, tune = method.phases(method_options(method, {"probe_share": 0.2}), 50, SIZES)
    assert (probe.trainable, probe.steps) == ("projection", 10)
    assert (tune.trainable, tune.steps) == ("all", 40)
    assert tune.start == "previous"
    (only,) = find_method("linear-probe").phases(find_method("linear-probe").options(), 9, SIZES)
    assert (only.trainable, only.steps) == ("projection", 9)
    (only,) = find_method("text2concept").phases(find_method("text2concept").options(), 9, SIZES)
    assert (only.trainable, only.steps) == ("projection", 9)


@pytest.mark.parametrize("name", ["kd", "rise", "scmd"])
def test_no_gradient_reaches_what_the_teacher_said(name: str) -> None:
    batch, classes = make_batch([-1] * B), random(C, D, seed=3).requires_grad_()
    assert batch.image_features is not None
    batch.image_features.requires_grad_()
    width = C if find_method(name).head == "classes" else D
    outputs = Outputs(features=random(B, width).requires_grad_(), trunk=random(B, W))
    for objective in objectives(name):
        objective(outputs, batch, classes).total.backward()
    assert batch.image_features.grad is None


@pytest.mark.parametrize("name", ["kd", "rise", "scmd"])
def test_missing_knowledge_is_named(name: str) -> None:
    width = C if find_method(name).head == "classes" else D
    outputs = Outputs(features=random(B, width), trunk=random(B, W))
    objective = objectives(name)[0]
    with pytest.raises(AttarError, match=f"{name} needs class features"):
        objective(outputs, make_batch(), None)
    silent = Batch(**{**vars(make_batch()), "image_features": None})
    with pytest.raises(AttarError, match=f"{name} needs the teacher's image features"):
        objective(outputs, silent, random(C, D))
    unlabelled = Batch(**{**vars(make_batch()), "labels": None})
    with pytest.raises(AttarError, match=f"{name} needs labels"):
        objective(outputs, unlabelled, random(C, D))


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("kd", "weight", -1),
        ("kd", "temperature", 0),
        ("rise", "label-weight", float("nan")),
        ("rise", "scale", 0),
        ("miro", "weight", -0.5),
        ("scmd", "hard-share", 0),
        ("scmd", "full-share", 1.5),
        ("lp-ft", "probe-share", 1),
        ("linear-probe", "label-smoothing", 1),
    ],
)
def test_an_option_out_of_its_range_is_refused(method: str, option: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"--method\.{option} {value}.*: must be"):
        method_options(find_method(method), {option: value})
