"""scripts/train_small_openclip.py at tiny sizes: OpenCLIP and attar both take what it saves."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from tests.doubles import random_image

from attar.data.emoji import TRAINING_FAMILIES, emoji_concepts
from attar.students.weights import load_backbone_weights
from attar.teachers.image_encoder import find_image_encoder
from attar.teachers.registry import load_teacher

SCRIPTS = Path(__file__).parents[1] / "scripts"
TINY = {
    "backbone": "test_resnet",
    "image-size": 32,
    "dim": 16,
    "text-width": 64,
    "text-layers": 1,
    "steps": 2,
    "batch-size": 6,
}
PER_CLASS = 8


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Import as a script does: from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        return importlib.import_module("train_small_openclip")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for i, place in enumerate(("photo/dog", "photo/horse", "sketch/dog", "sketch/horse")):
        (folder / "pacs" / place).mkdir(parents=True)
        for number in range(PER_CLASS):
            image = random_image(PER_CLASS * i + number)
            image.save(folder / "pacs" / place / f"{number}.png")
    return folder


def make(script: ModuleType, folder: Path, name: str = "model", **changes: object) -> Path:
    options = {**TINY, "pacs": folder / "pacs", "emoji": folder / "emoji", "out": folder / name}
    options |= changes
    script.main([str(word) for key, value in options.items() for word in (f"--{key}", value)])
    return folder / name


@pytest.fixture(scope="module")
def model(script: ModuleType, folder: Path) -> Path:
    return make(script, folder)


def test_open_clip_and_attar_give_the_same_features(model: Path) -> None:
    place = f"local-dir:{model}"
    network, prepare = open_clip.create_model_from_pretrained(place)
    teacher = load_teacher(place, torch.device("cpu"))
    image, texts = random_image(99), ["a photo of a dog", "a photo of a horse"]
    pixels = prepare(image).unsqueeze(0)
    torch.testing.assert_close(teacher.prepare(image), pixels[0])
    with torch.no_grad():
        images = network.eval().encode_image(pixels)
        torch.testing.assert_close(teacher.encode_images(pixels), images)
        answers = network.encode_text(open_clip.get_tokenizer(place)(texts))
        torch.testing.assert_close(teacher.encode_texts(texts), answers)
    assert images.shape == (1, 16)
    assert pixels.shape == (1, 3, 32, 32)
    assert find_image_encoder(teacher).architecture == "test_resnet"


def test_it_saw_no_sketch_no_odd_image_and_no_noto(
    script: ModuleType, folder: Path, model: Path
) -> None:
    every = [*script.read_pacs(folder / "pacs"), *script.read_emoji(folder / "emoji")]
    seen = script.training_pictures(every, "sketch")
    even = {p.path for p in every if p.domain == "photo" and not p.held_out}
    assert 0 < len(even) < 2 * PER_CLASS
    assert {p.path for p in seen if p.source == "pacs"} == even
    assert {p.domain for p in seen} == {"photo", *TRAINING_FAMILIES}
    facts = json.loads((model / "facts.json").read_text())
    assert facts["training_images"] == len(even) + 3 * len(emoji_concepts())
    assert facts["without"] == "sketch"


def test_it_says_where_the_backbones_weights_came_from(model: Path) -> None:
    origin = load_backbone_weights(timm.create_model("test_resnet"), "test_resnet", "auto")
    assert json.loads((model / "facts.json").read_text())["backbone_weights"] == origin


def test_accuracy_is_that_of_the_saved_model_on_odd_images(
    script: ModuleType, folder: Path, model: Path
) -> None:
    facts = json.loads((model / "facts.json").read_text())
    teacher = load_teacher(f"local-dir:{model}", torch.device("cpu"))
    texts = F.normalize(teacher.encode_texts(["a photo of a dog", "a photo of a horse"]), dim=1)
    expected: dict[str, list[bool]] = {"photo": [], "sketch": []}
    for picture in script.read_pacs(folder / "pacs"):
        if picture.held_out:
            pixels = teacher.prepare(script.read_image(picture.path)).unsqueeze(0)
            answer = int((teacher.encode_images(pixels) @ texts.T).argmax())
            expected[picture.domain].append(("dog", "horse")[answer] == picture.name)
    means = {domain: sum(right) / len(right) for domain, right in expected.items()}
    assert facts["held_out_accuracy"] == pytest.approx(means)


def test_the_seed_decides_everything(script: ModuleType, folder: Path, model: Path) -> None:
    weights = (model / "open_clip_model.safetensors").read_bytes()
    again, other = make(script, folder, "again"), make(script, folder, "other", seed=1)
    assert (again / "open_clip_model.safetensors").read_bytes() == weights
    assert (other / "open_clip_model.safetensors").read_bytes() != weights


def test_training_lowers_the_loss_of_both_towers(script: ModuleType, folder: Path) -> None:
    recipe = script.Recipe(
        backbone="test_resnet", image_size=32, dim=16, text_width=64, text_layers=1, steps=30
    )
    pictures = script.training_pictures(script.read_pacs(folder / "pacs"), "sketch")
    network, _ = script.build(recipe, script.describe(recipe))
    names = [p.name for p in pictures]
    classes = sorted(set(names))
    tokens = open_clip.SimpleTokenizer(context_length=24)([f"a photo of a {c}" for c in classes])
    pixels = script.show(pictures, script.train_transform("none", 32), network)
    said = torch.tensor([classes.index(name) for name in names])

    def loss() -> float:
        with torch.no_grad():
            images = network.encode_image(pixels, normalize=True)
            texts = network.encode_text(tokens, normalize=True)
            return float(script.contrast(images, texts, torch.tensor(10.0), said))

    before = loss()
    script.train(network, pictures, recipe)
    assert loss() < before


def test_distinct_sentences_give_clips_own_loss(script: ModuleType) -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    scale = torch.tensor(7.0)
    expected = open_clip.ClipLoss()(images, texts, scale)
    torch.testing.assert_close(script.contrast(images, texts, scale, torch.arange(5)), expected)


def test_pictures_that_share_a_sentence_are_no_negatives_of_it(script: ModuleType) -> None:
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(2, 8), dim=1)
    said, scale = [0, 1, 0, 0], 5.0
    cosines = [[float(i @ t) * scale for t in texts] for i in images]
    to_text = [torch.tensor(row).log_softmax(0)[s] for row, s in zip(cosines, said, strict=True)]
    to_image = []
    for sentence in (0, 1):
        column = torch.tensor([row[sentence] for row in cosines]).log_softmax(0)
        own = [column[i] for i, s in enumerate(said) if s == sentence]
        to_image.append(sum(own) / len(own))
    expected = -(sum(to_text) / 4 + sum(to_image) / 2) / 2
    loss = script.contrast(images, texts, torch.tensor(scale), torch.tensor(said))
    torch.testing.assert_close(loss, expected)


def test_a_batch_says_one_thing_in_one_way(script: ModuleType, folder: Path) -> None:
    every = [*script.read_pacs(folder / "pacs"), *script.read_emoji(folder / "emoji")]
    batch = script.training_pictures(every, "sketch")
    generator = torch.Generator().manual_seed(0)
    said: dict[str, set[str]] = {}
    for _ in range(20):
        captions = script.write_captions(batch, generator)
        meant = {(p.source, p.name): c for p, c in zip(batch, captions, strict=True)}
        assert all(meant[p.source, p.name] == c for p, c in zip(batch, captions, strict=True))
        assert all(p.name in c for p, c in zip(batch, captions, strict=True))
        said.setdefault(batch[0].name, set()).add(captions[0])
    assert len(said[batch[0].name]) > 4
    assert not any("sketch" in caption for captions in said.values() for caption in captions)


def test_a_folder_without_pacs_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.main(["--pacs", str(tmp_path), "--out", str(tmp_path / "out")])
    assert f"--pacs {tmp_path} holds no images as domain/class/image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
