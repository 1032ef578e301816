import json
import logging
import pickle
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.doubles import make_openclip_folder, make_openclip_folder_with_bert, random_image

from attar.errors import UsageError
from attar.teachers.base import Teacher
from attar.teachers.openclip import count_cut, needs_quick_gelu, split_builtin
from attar.teachers.registry import describe_teacher_spec, load_teacher

CPU = torch.device("cpu")
TEXTS = ["a photo of a dog", "a photo of the cat", "house"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_openclip_folder(tmp_path_factory.mktemp("openclip") / "model")


def by_hand(name: str, **options):
    model, _, transform = open_clip.create_model_and_transforms(name, **options)
    return model.eval(), transform, open_clip.get_tokenizer(name)


def assert_equals_open_clip(teacher: Teacher, name: str, **options) -> None:
    model, transform, tokenizer = by_hand(name, **options)
    images = [random_image(seed) for seed in range(3)]
    pixels = torch.stack([teacher.prepare(image) for image in images])
    assert torch.equal(pixels, torch.stack([transform(image) for image in images]))
    with torch.no_grad():
        image_features = model.encode_image(pixels)
        text_features = model.encode_text(tokenizer(TEXTS))
    torch.testing.assert_close(teacher.encode_images(pixels), image_features, rtol=0, atol=1e-5)
    torch.testing.assert_close(teacher.encode_texts(TEXTS), text_features, rtol=0, atol=1e-5)
    assert teacher.info.dim == image_features.shape[1]
    assert teacher.info.logit_scale == pytest.approx(model.logit_scale.exp().item())
    # The features say something about their input, so that equality is not of constants.
    assert image_features.std(dim=0).max() > 1e-4
    assert text_features.std(dim=0).max() > 1e-4


@pytest.mark.parametrize("custom_text", [False, True])
def test_features_equal_open_clip(tmp_path: Path, custom_text: bool) -> None:
    folder = make_openclip_folder(tmp_path / "model", custom_text=custom_text)
    teacher = load_teacher(f"local-dir:{folder}", CPU)
    assert isinstance(teacher, Teacher)
    assert_equals_open_clip(teacher, f"local-dir:{folder}")


def test_transformers_text_tower_loads_after_its_folder_moved(tmp_path: Path) -> None:
    made = make_openclip_folder_with_bert(tmp_path / "made")
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(made, moved)
    reference = f"local-dir:{made}"
    assert_equals_open_clip(load_teacher(reference, CPU), reference)
    expected = load_teacher(reference, CPU).encode_texts(TEXTS)
    shutil.rmtree(made)
    teacher = load_teacher(f"local-dir:{moved}", CPU)
    assert torch.equal(teacher.encode_texts(TEXTS), expected)


def test_features_carry_no_gradient_and_parameters_are_frozen(folder: Path) -> None:
    teacher = load_teacher(str(folder), CPU)
    pixels = torch.rand(2, 3, 64, 64, requires_grad=True)
    assert not teacher.encode_images(pixels).requires_grad
    assert not teacher.encode_texts(["a dog"]).requires_grad
    for tower in (teacher.towers.image, teacher.towers.text):
        assert not tower.training
        assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_towers_are_the_encoders_and_let_gradient_through(folder: Path) -> None:
    teacher = load_teacher(str(folder), CPU)
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    features = teacher.towers.image(pixels)
    torch.testing.assert_close(features.detach(), teacher.encode_images(pixels))
    features.sum().backward()
    assert pixels.grad.abs().sum() > 0
    tokens = teacher.towers.tokenizer(TEXTS)
    torch.testing.assert_close(teacher.towers.text(tokens), teacher.encode_texts(TEXTS))


def test_many_texts_are_batched_and_order_does_not_matter(folder: Path) -> None:
    teacher = load_teacher(str(folder), CPU)
    texts = [f"photo {number}" for number in range(300)]
    features = teacher.encode_texts(texts)
    assert features.shape == (300, 64)
    assert features.dtype == torch.float32
    torch.testing.assert_close(teacher.encode_texts(texts[::-1]), features.flip(0))
    assert teacher.encode_texts([]).shape == (0, 64)


def test_prepare_is_picklable_and_small(folder: Path) -> None:
    teacher = load_teacher(str(folder), CPU)
    pickled = pickle.dumps(teacher.prepare)
    assert len(pickled) < 10_000, "no weights travel to the workers"
    image = random_image(3)
    assert torch.equal(pickle.loads(pickled)(image), teacher.prepare(image))


def test_a_cut_text_is_said_once(folder: Path, caplog) -> None:
    teacher = load_teacher(str(folder), CPU)
    fits = "dog " * 14  # with start and end: exactly the 16 tokens of the context
    with caplog.at_level(logging.WARNING, logger="attar"):
        teacher.encode_texts([fits])
        assert not caplog.records
        long = teacher.encode_texts([fits + "cat"])
        teacher.encode_texts([fits + "horse"])
    assert len(caplog.records) == 1
    assert "1 of 1 texts were cut" in caplog.records[0].getMessage()
    assert torch.equal(long, teacher.encode_texts([fits]))


def test_cut_texts_are_counted_for_both_kinds_of_tokenizer(folder: Path, tmp_path: Path) -> None:
    simple = open_clip.get_tokenizer(f"local-dir:{folder}")
    bert = make_openclip_folder_with_bert(tmp_path / "bert")
    wordpiece = open_clip.get_tokenizer(f"local-dir:{bert}")
    assert count_cut(simple, ["dog", "dog " * 14, "dog " * 15, "dog " * 40]) == 2
    assert count_cut(wordpiece, ["dog", "dog " * 10, "dog " * 11, "dog " * 40]) == 2


def test_identity_follows_weights_and_preprocessing_not_the_place(
    folder: Path, tmp_path: Path
) -> None:
    def identity(path: Path) -> str:
        return load_teacher(str(path), CPU).info.identity

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    original = identity(folder)
    assert identity(copy) == original

    config = json.loads((copy / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    assert identity(copy) != original

    other = Path(shutil.copytree(folder, tmp_path / "other"))
    state = load_file(other / "open_clip_model.safetensors")
    state["ln_final.bias"][0] += 1e-3
    save_file(state, other / "open_clip_model.safetensors")
    assert identity(other) != original


@pytest.fixture
def builtin(tmp_path: Path, monkeypatch) -> tuple[str, str]:
    """A tiny model under a built-in name, its published weights trained with QuickGELU."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    weights = tmp_path / "tiny.safetensors"
    tag = {
        "file": str(weights),
        "quick_gelu": True,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-T-8", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-T-8", {"small_2b": tag})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = open_clip.create_model("Tiny-T-8").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, weights)
    return "Tiny-T-8", "small_2b"


@pytest.mark.parametrize("spelling", ["{}/{}", "{},{}", "open_clip:{}/{}", "open_clip:{},{}"])
def test_builtin_spellings_load_the_published_model(builtin, spelling: str) -> None:
    model, tag = builtin
    teacher = load_teacher(spelling.format(model, tag), CPU)
    assert teacher.info.name == f"{model}/{tag}"
    assert_equals_open_clip(teacher, model, pretrained=tag, force_quick_gelu=True)


def test_quick_gelu_follows_the_weights(builtin) -> None:
    model, tag = builtin
    teacher = load_teacher(f"{model}/{tag}", CPU)
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        exact = open_clip.create_model(model, pretrained=tag).eval()
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        difference = exact.encode_image(pixels) - teacher.encode_images(pixels)
    assert difference.abs().max() > 1e-3
    assert needs_quick_gelu("ViT-B-32", "openai")
    assert not needs_quick_gelu("ViT-B-32-quickgelu", "openai")
    assert not needs_quick_gelu("ViT-B-32", "laion2b_s34b_b79k")


def test_a_weights_file_may_stand_for_the_tag(builtin, tmp_path: Path) -> None:
    model, tag = builtin
    by_file = load_teacher(f"{model},{tmp_path / 'tiny.safetensors'}", CPU)
    published = load_teacher(f"{model}/{tag}", CPU).towers.text.model.state_dict()
    for name, tensor in by_file.towers.text.model.state_dict().items():
        assert torch.equal(tensor, published[name])
    with pytest.raises(UsageError, match=r"missing\.pt of teacher .* does not exist"):
        describe_teacher_spec(f"{model},{tmp_path / 'missing.pt'}")


def test_a_hub_model_is_read_from_the_cache_without_a_network(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"hf-hub:org/tiny.*could not be fetched.*'pocket'"):
        load_teacher("hf-hub:org/tiny", CPU)
    commit = "0" * 40
    repository = tmp_path / "models--org--tiny"
    snapshot = Path(shutil.copytree(folder, repository / "snapshots" / commit))
    weights = (snapshot / "open_clip_model.safetensors").rename(tmp_path / "aside")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with pytest.raises(UsageError, match="could not be fetched"):
        load_teacher("hf-hub:org/tiny", CPU)  # the configuration alone is not a teacher
    weights.rename(snapshot / "open_clip_model.safetensors")
    teacher = load_teacher("hf-hub:org/tiny", CPU)
    assert teacher.info.identity == load_teacher(str(folder), CPU).info.identity


def test_an_offline_hub_is_one_line_with_the_ways_out(tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError) as error:
        load_teacher("ViT-B-32/openai", CPU)
    message = str(error.value)
    assert "\n" not in message
    for part in ("ViT-B-32/openai", "local-dir:", "cache", "'pocket'"):
        assert part in message


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("ViT-B-32/openai", ("ViT-B-32", "openai")),
        ("ViT-B-32,openai", ("ViT-B-32", "openai")),
        ("ViT-B/32", ("ViT-B-32", "")),
        ("ViT-B/32/openai", ("ViT-B-32", "openai")),
        ("ViT-B/32,openai", ("ViT-B-32", "openai")),
        ("ViT-B-32", ("ViT-B-32", "")),
        ("ViT-B-32,/a/b.pt", ("ViT-B-32", "/a/b.pt")),
    ],
)
def test_split_builtin(value: str, parts: tuple[str, str]) -> None:
    assert split_builtin(value) == parts


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("ViT-B-23/openai", ["ViT-B-23", "did you mean", "ViT-B-32"]),
        ("ViT-B-32/opnai", ["opnai", "'openai'"]),
        ("ViT-B-32/nothing_like_it", ["nothing_like_it", "laion2b_s34b_b79k"]),
        ("ViT-B-32", ["ViT-B-32/openai", "laion2b_s34b_b79k"]),
        ("convnext_tiny", ["convnext_tiny", "WEIGHTS.pt"]),
        ("hf-hub:alone", ["ORGANISATION/NAME"]),
    ],
)
def test_wrong_names_are_refused_with_the_nearest(spec: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        describe_teacher_spec(spec)
    for word in words:
        assert word in str(error.value)


def test_names_are_found_whatever_their_case() -> None:
    assert describe_teacher_spec("vit-b-32/laion2B-s34B-b79K").name == "ViT-B-32/laion2b_s34b_b79k"


@pytest.mark.parametrize(
    "spec", ["MobileCLIP-S1/datacompdr", "MobileCLIP2-S0/dfndr2b", "hf-hub:apple/MobileCLIP-S2"]
)
def test_research_only_weights_say_so(spec: str) -> None:
    assert "research only" in describe_teacher_spec(spec).licence


def test_free_weights_have_no_licence_line() -> None:
    assert describe_teacher_spec("ViT-B-32/laion2b_s34b_b79k").licence is None


def _without_config(folder: Path) -> None:
    (folder / "open_clip_config.json").unlink()


def _with_broken_config(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text("{")


def _with_another_config(folder: Path) -> None:
    (folder / "open_clip_config.json").write_text('{"model": 1}')


def _without_weights(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (shutil.rmtree, "does not exist"),
        (_without_config, "lacks open_clip_config.json"),
        (_with_broken_config, "not valid JSON"),
        (_with_another_config, "lacks 'model_cfg'"),
        (_without_weights, "holds no weights"),
    ],
)
def test_an_incomplete_folder_is_refused_before_loading(
    folder: Path, tmp_path: Path, breakage, words: str
) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    breakage(broken)
    with pytest.raises(UsageError) as error:
        describe_teacher_spec(f"local-dir:{broken}")
    assert words in str(error.value)
    assert str(broken) in str(error.value)


def _cut_weights(folder: Path) -> None:
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _with_weights_of_another_model(folder: Path) -> None:
    save_file({"other.weight": torch.zeros(2)}, folder / "open_clip_model.safetensors")


def _with_nan(folder: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    state["visual.trunk.classifier.weight"][0, 0] = torch.nan
    save_file(state, folder / "open_clip_model.safetensors")


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        (_cut_weights, "cannot be loaded"),
        (_with_weights_of_another_model, "cannot be loaded"),
        (_with_nan, "NaN"),
    ],
)
def test_a_broken_folder_is_one_line(folder: Path, tmp_path: Path, breakage, words: str) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    breakage(broken)
    with pytest.raises(UsageError) as error:
        load_teacher(f"local-dir:{broken}", CPU)
    assert words in str(error.value)
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_cannot_run_is_refused_when_loaded(tmp_path: Path) -> None:
    folder = make_openclip_folder(tmp_path / "model")
    config = json.loads((folder / "open_clip_config.json").read_text())
    # OpenCLIP sizes this projection from the wrong width: the first forward pass fails.
    config["model_cfg"]["vision_cfg"]["timm_proj"] = "linear"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()},
        folder / "open_clip_model.safetensors",
    )
    with pytest.raises(UsageError, match="was loaded but cannot run"):
        load_teacher(str(folder), CPU)
