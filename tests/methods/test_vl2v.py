"""VL2V: targets against numpy, what each stage trains, and the ablations."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from attar.errors import UsageError
from attar.methods.base import Phase, Sizes
from attar.methods.parts import class_mixture
from attar.methods.registry import find_method, method_options
from attar.students.config import StudentConfig
from attar.students.student import build_student, load_student, save_student
from attar.types import Batch, Outputs

B, C, D, SCALE = 5, 4, 6, 20.0
SIZES = Sizes(dim=D, trunk_width=8, num_classes=C, num_domains=2, teacher_dim=D, logit_scale=SCALE)
LABELS = [0, 3, -1, 1, -1]


def random(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def phases(name: str, options: Mapping[str, object] | None = None) -> tuple[Phase, ...]:
    method = find_method(name)
    return method.phases(method_options(method, options or {}), 100, SIZES)


def make_batch(labels: list[int] = LABELS) -> Batch:
    return Batch(
        images=torch.zeros(len(labels), 3, 2, 2),
        keys=tuple(map(str, range(len(labels)))),
        image_features=nn.functional.normalize(random(len(labels), D, seed=1), dim=-1),
        labels=torch.tensor(labels),
    )


def unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def mixture_by_hand(
    images: NDArray[np.float64], classes: NDArray[np.float64], scale: float
) -> NDArray[np.float64]:
    rows = []
    for v in unit(images):
        weights = [np.exp(scale * float(v @ t)) for t in unit(classes)]
        mixed = sum(w * t for w, t in zip(weights, unit(classes), strict=True)) / sum(weights)
        rows.append(mixed / np.linalg.norm(mixed))
    return np.stack(rows)


def test_a_mixture_is_the_classes_weighted_by_the_teachers_probabilities() -> None:
    images, classes = random(B, D, seed=2), random(C, D, seed=3)
    found = class_mixture(3 * images, 2 * classes, SCALE).numpy()
    np.testing.assert_allclose(found, mixture_by_hand(images.numpy(), classes.numpy(), SCALE))
    sure = class_mixture(classes, classes, 1e6).numpy()
    np.testing.assert_allclose(sure, unit(classes.numpy()), atol=1e-9)


@pytest.mark.parametrize("name", ["vl2v-adip", "vl2v-sd"])
@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9, 1.0])
def test_the_loss_by_hand(name: str, weight: float) -> None:
    batch, classes, f = make_batch(), random(C, D, seed=3), random(B, D, seed=4)
    assert batch.image_features is not None
    images = batch.image_features.numpy()
    mixed = mixture_by_hand(images, classes.numpy(), SCALE)
    texts = [unit(classes.numpy())[y] if y >= 0 else mixed[i] for i, y in enumerate(LABELS)]
    own = unit(f.numpy())
    to_image = np.mean([own[i] @ images[i] for i in range(B)])
    to_text = np.mean([own[i] @ texts[i] for i in range(B)])
    objective = phases(name, {"image-weight": weight})[-1].objective
    loss = objective(Outputs(features=f), batch, classes)
    assert loss.total.item() == pytest.approx(-(weight * to_image + (1 - weight) * to_text))
    assert loss.terms["image_alignment"].item() == pytest.approx(-to_image)
    assert loss.terms["text_alignment"].item() == pytest.approx(-to_text)


def test_what_is_done_without_labels_changes_nothing_for_labelled_images() -> None:
    batch, classes, f = make_batch([0, 3, 2, 1, 1]), random(C, D, seed=3), random(B, D, seed=4)
    losses = [
        phases("vl2v-adip", {"unlabelled": choice})[0].objective(
            Outputs(features=f), batch, classes
        )
        for choice in ("mixture", "image")
    ]
    assert torch.equal(losses[0].total, losses[1].total)


def test_the_mixture_sends_no_gradient_into_the_class_features() -> None:
    batch, f = make_batch([-1] * B), random(B, D, seed=4)
    classes = random(C, D, seed=3).requires_grad_()
    student = f.requires_grad_()
    phases("vl2v-adip")[0].objective(Outputs(features=student), batch, classes).total.backward()
    assert student.grad is not None
    assert classes.grad is None or not classes.grad.any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("align", "projection", 25), ("distill", "backbone", 75)]),
        ({"align-share": 0}, [("distill", "backbone", 100)]),
        ({"distill-trains": "all"}, [("align", "projection", 25), ("distill", "all", 75)]),
        ({"align-share": 0, "distill-trains": "all"}, [("distill", "all", 100)]),
    ],
)
def test_stages(options: dict[str, object], expected: list[tuple[str, str, int]]) -> None:
    found = phases("vl2v-adip", options)
    assert [(phase.name, phase.trainable, phase.steps) for phase in found] == expected


def test_only_distill_is_drawn_back_towards_its_start() -> None:
    method = find_method("vl2v-adip")
    given: dict[str, object]
    for given, shares in ({}, [1, 1]), ({"interpolation": 0.5}, [1, 0.5]):
        assert [phase.interpolation for phase in phases("vl2v-adip", given)] == shares
    for share in (0.0, 1.5):
        with pytest.raises(UsageError, match=f"--method.interpolation {share}: must be above 0"):
            method_options(method, {"interpolation": share})


def test_self_distillation_refines_the_whole_encoder_in_one_stage() -> None:
    (phase,) = phases("vl2v-sd")
    assert (phase.trainable, phase.steps, phase.interpolation) == ("all", 100, 1.0)
    method = find_method("vl2v-sd")
    assert method.white_box
    assert method.student["freeze_bn"]


def test_where_the_student_is_the_teacher_only_the_text_pulls() -> None:
    batch, classes = make_batch([0, 3, 2, 1, 1]), random(C, D, seed=3)
    assert batch.image_features is not None
    gradients = []
    for weight in (0.5, 0.0):
        student = batch.image_features.clone().requires_grad_()
        (phase,) = phases("vl2v-sd", {"image-weight": weight})
        phase.objective(Outputs(features=student), batch, classes).total.backward()
        gradients.append(student.grad)
    half, text_alone = gradients
    assert half is not None
    assert text_alone is not None
    assert text_alone.abs().max() > 1e-3
    torch.testing.assert_close(half, text_alone / 2)


def test_class_embeddings_ask_for_what_they_are_made_of() -> None:
    method = find_method("vl2v-adip")
    for choice in ("prompts", "index", "source-images"):
        options = method_options(method, {"class-embedding": choice})
        assert method.class_embedding(options) == choice
        assert "domains" not in method.needs_with(options)
    for choice in ("source-domains", "all-domains"):
        options = method_options(method, {"class-embedding": choice})
        assert "domains" in method.needs_with(options)
    with pytest.raises(UsageError, match=r"--method.class-embedding.*source-images"):
        method_options(method, {"class-embedding": "target-images"})


def test_gelu_behind_the_projection_is_part_of_the_student(tmp_path: Path) -> None:
    config = StudentConfig(weights="none", image_size=32, gelu=True)
    student = build_student("test_vit", D, config).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        plain = student.network((images - student.mean) / student.std)
        found = student(images).features
        with_trunk = student(images, trunk=True).features
        loaded = load_student(save_student(student, tmp_path / "student"))(images).features
    assert plain.min() < 0
    torch.testing.assert_close(found, nn.functional.gelu(plain))
    torch.testing.assert_close(with_trunk, found)
    assert torch.equal(loaded, found)
    assert not build_student("test_vit", 2, config, class_names=("a", "b")).spec.gelu
