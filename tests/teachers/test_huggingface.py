import json
import logging
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tests.doubles import clip_tokenizer, make_hf_clip_folder, random_image

from attar.errors import UsageError
from attar.teachers.base import Teacher
from attar.teachers.registry import describe_teacher_spec, load_teacher

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
TEXTS = ["a photo of a dog", "the house", "cat"]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request, tmp_path_factory) -> Path:
    return make_hf_clip_folder(tmp_path_factory.mktemp("hf") / request.param, request.param)


def kind_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def pooled(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def test_features_equal_transformers(folder: Path) -> None:
    teacher = load_teacher(f"hf:{folder}", CPU)
    assert isinstance(teacher, Teacher)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    images = [random_image(seed) for seed in range(3)]
    pixels = torch.stack([teacher.prepare(image) for image in images])
    assert torch.equal(pixels, processor(images=images, return_tensors="pt")["pixel_values"])
    if kind_of(folder) == "siglip":
        ids = tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
        inputs = {"input_ids": ids["input_ids"]}
    else:
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        image_features = pooled(model.get_image_features(pixel_values=pixels))
        text_features = pooled(model.get_text_features(**inputs))
    torch.testing.assert_close(teacher.encode_images(pixels), image_features, rtol=0, atol=1e-5)
    torch.testing.assert_close(teacher.encode_texts(TEXTS), text_features, rtol=0, atol=1e-5)
    assert teacher.info.dim == image_features.shape[1]
    assert teacher.info.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert text_features.std(dim=0).max() > 1e-4


def test_a_text_does_not_depend_on_its_neighbours(folder: Path) -> None:
    teacher = load_teacher(str(folder), CPU)
    together = teacher.encode_texts(["cat", "a photo of a dog on a house"])
    torch.testing.assert_close(teacher.encode_texts(["cat"])[0], together[0], atol=1e-5, rtol=0)


def test_the_tokenizer_of_the_test_model_is_whole() -> None:
    expected = [49406, 320, 1125, 539, 320, 1929, 49407]
    assert clip_tokenizer()("a photo of a dog")["input_ids"] == expected


def test_prepare_is_picklable_and_small(folder: Path) -> None:
    teacher = load_teacher(str(folder), CPU)
    pickled = pickle.dumps(teacher.prepare)
    assert len(pickled) < 10_000
    assert torch.equal(pickle.loads(pickled)(random_image()), teacher.prepare(random_image()))


def test_towers_are_the_encoders(folder: Path) -> None:
    teacher = load_teacher(str(folder), CPU)
    tokens = teacher.towers.tokenizer(TEXTS)
    torch.testing.assert_close(teacher.towers.text(tokens), teacher.encode_texts(TEXTS))
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(teacher.towers.image(pixels), teacher.encode_images(pixels))
    assert not teacher.encode_images(pixels).requires_grad


def test_a_cut_text_is_said_once(folder: Path, caplog) -> None:
    teacher = load_teacher(str(folder), CPU)
    with caplog.at_level(logging.WARNING, logger="attar"):
        teacher.encode_texts(["dog " * 14])
        assert not caplog.records
        teacher.encode_texts(["dog " * 15, "cat"])
        teacher.encode_texts(["dog " * 15])
    assert ["1 of 2 texts were cut" in record.getMessage() for record in caplog.records] == [True]


def test_identity_follows_the_preprocessing(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    original = load_teacher(str(folder), CPU).info.identity
    assert load_teacher(str(copy), CPU).info.identity == original
    config = json.loads((copy / "preprocessor_config.json").read_text())
    config["image_mean"] = [0.1, 0.2, 0.3]
    (copy / "preprocessor_config.json").write_text(json.dumps(config))
    assert load_teacher(str(copy), CPU).info.identity != original


def test_identity_follows_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    document = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["dog</w>"], vocabulary["cat</w>"] = vocabulary["cat</w>"], vocabulary["dog</w>"]
    (copy / "tokenizer.json").write_text(json.dumps(document))
    original, changed = load_teacher(str(folder), CPU), load_teacher(str(copy), CPU)
    assert not torch.allclose(original.encode_texts(["dog"]), changed.encode_texts(["dog"]))
    assert changed.info.identity != original.info.identity


def _of_another_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))


def _without(name: str):
    def breakage(folder: Path) -> None:
        (folder / name).unlink()

    return breakage


def _with_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (_without("config.json"), "lacks config.json"),
        (_with_broken_config, "not valid JSON"),
        (_of_another_type, "'bert'"),
        (_without("model.safetensors"), "holds no weights"),
        (_without("preprocessor_config.json"), "lacks the image processor"),
    ],
)
def test_an_incomplete_folder_is_refused_before_loading(
    folder: Path, tmp_path: Path, breakage, words: str
) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    breakage(broken)
    with pytest.raises(UsageError, match=words):
        describe_teacher_spec(f"hf:{broken}")


def _cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _with_a_broken_tokenizer(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in document["added_tokens"]}
    document["model"].update(vocab=special, merges=[], unk_token=next(iter(special)))
    (folder / "tokenizer.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (_cut_weights, "the model of teacher"),
        (_without_tokenizer, "the tokenizer of teacher"),
        (_with_a_broken_tokenizer, "the tokenizer of teacher"),
    ],
)
def test_a_broken_folder_is_one_line(folder: Path, tmp_path: Path, breakage, words: str) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    breakage(broken)
    with pytest.raises(UsageError) as error:
        load_teacher(f"hf:{broken}", CPU)
    assert words in str(error.value)
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_offline_hub_is_one_line_with_the_ways_out(tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"hf:openai/clip-vit.*could not be fetched.*'pocket'"):
        load_teacher("hf:openai/clip-vit-base-patch32", CPU)


def test_a_missing_folder_is_refused() -> None:
    with pytest.raises(UsageError, match="no such folder"):
        describe_teacher_spec("hf:/nowhere/model")


def test_without_transformers_the_command_is_named(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'attar\[huggingface\]'"):
        describe_teacher_spec("hf:openai/clip-vit-base-patch32")
