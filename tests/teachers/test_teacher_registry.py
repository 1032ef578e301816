import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tests.doubles import make_hf_clip_folder, make_openclip_folder, random_image

from attar.errors import UsageError
from attar.teachers import pocket
from attar.teachers.base import Teacher
from attar.teachers.registry import (
    TEACHERS,
    describe_teacher_spec,
    load_teacher,
    parse_teacher_spec,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("ViT-B-32/openai", ("open_clip", "ViT-B-32/openai")),
        ("ViT-B-32,openai", ("open_clip", "ViT-B-32,openai")),
        ("open_clip:ViT-B-32/openai", ("open_clip", "ViT-B-32/openai")),
        ("hf-hub:org/name", ("hf-hub", "org/name")),
        ("local-dir:some/folder", ("local-dir", "some/folder")),
        ("hf:openai/clip-vit-base-patch32", ("hf", "openai/clip-vit-base-patch32")),
        (" pocket ", ("pocket", "")),
        ("pocket-without:sketch", ("pocket-without", "sketch")),
        ("https://host/v1#model", ("remote", "https://host/v1#model")),
        ("http://127.0.0.1:80/v1#m?size=8", ("remote", "http://127.0.0.1:80/v1#m?size=8")),
    ],
)
def test_every_spelling_parses(spec: str, parsed: tuple[str, str]) -> None:
    assert parse_teacher_spec(spec) == parsed


def test_every_kind_has_a_spelling_above() -> None:
    marks = test_every_spelling_parses.pytestmark[0].args[1]
    assert {kind for _, (kind, _) in marks} == set(TEACHERS)


def _hub_cache(root: Path, repository: str, monkeypatch) -> Path:
    """Return the (empty) folder where the hub's cache keeps a repository; nothing is fetched."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


def _builtin(root: Path, monkeypatch) -> str:
    folder = make_openclip_folder(root / "tiny")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny", config)
    return f"Tiny,{folder / 'open_clip_model.safetensors'}"


def _hub(root: Path, monkeypatch) -> str:
    make_openclip_folder(_hub_cache(root, "org/tiny", monkeypatch))
    return "hf-hub:org/tiny"


def _local(root: Path, monkeypatch) -> str:
    return f"local-dir:{make_openclip_folder(root / 'tiny')}"


def _transformers(root: Path, monkeypatch) -> str:
    pytest.importorskip("transformers")
    return f"hf:{make_hf_clip_folder(root / 'tiny')}"


def _pocket_head(path: Path) -> None:
    for package in pocket.PACKAGES:
        pytest.importorskip(package)
    path.parent.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weight = torch.randn(pocket.DIM, pocket.IMAGE_WIDTH)
    tensors = {
        "weight": weight.half(),
        "bias": torch.zeros(pocket.DIM).half(),
        "logit_scale": torch.tensor(50.0),
    }
    save_file(tensors, path)


def _pocket(root: Path, monkeypatch) -> str:
    monkeypatch.setattr(pocket, "HEAD", root / "pocket" / "head.safetensors")
    _pocket_head(pocket.HEAD)
    return "pocket"


def _pocket_without(root: Path, monkeypatch) -> str:
    monkeypatch.setenv("ATTAR_CACHE", str(root))
    _pocket_head(pocket.strict_head_path("sketch"))
    return "pocket-without:sketch"


ONE_OF_EACH_KIND = {
    "open_clip": _builtin,
    "hf-hub": _hub,
    "local-dir": _local,
    "hf": _transformers,
    "pocket": _pocket,
    "pocket-without": _pocket_without,
}


def test_every_kind_is_below() -> None:
    # What the remote kind keeps of the protocol is tested in tests/remote, with a server.
    assert {*ONE_OF_EACH_KIND, "remote"} == set(TEACHERS)


@pytest.mark.parametrize("kind", ONE_OF_EACH_KIND)
def test_every_kind_loads_and_keeps_the_protocol(kind: str, tmp_path: Path, monkeypatch) -> None:
    spec = ONE_OF_EACH_KIND[kind](tmp_path, monkeypatch)
    described = describe_teacher_spec(spec)
    assert described.kind == kind
    teacher = load_teacher(spec, CPU)
    assert isinstance(teacher, Teacher)
    assert teacher.info.name == described.name
    assert len(teacher.info.identity) == 64
    assert teacher.info.logit_scale >= 1

    prepare = pickle.loads(pickle.dumps(teacher.prepare))
    pixels = torch.stack([prepare(random_image(seed)) for seed in range(2)])
    images, texts = teacher.encode_images(pixels), teacher.encode_texts(["a dog", "a cat", "a dog"])
    assert images.shape == (2, teacher.info.dim)
    assert texts.shape == (3, teacher.info.dim)
    for features in (images, texts):
        assert features.dtype == torch.float32
        assert features.isfinite().all()
        assert not features.requires_grad
        assert not torch.equal(features[0], features[1])
    torch.testing.assert_close(texts[0], texts[2])

    tokens = teacher.towers.tokenizer(["a dog", "a cat", "a dog"])
    torch.testing.assert_close(teacher.towers.text(tokens), texts)
    torch.testing.assert_close(teacher.towers.image(pixels), images)
    assert load_teacher(spec, CPU).info == teacher.info


def test_a_folder_is_known_by_its_files(tmp_path: Path, monkeypatch) -> None:
    openclip = make_openclip_folder(tmp_path / "openclip")
    hf = make_hf_clip_folder(tmp_path / "hf")
    assert parse_teacher_spec(str(openclip)) == ("local-dir", str(openclip))
    assert parse_teacher_spec(str(hf)) == ("hf", str(hf))
    monkeypatch.chdir(tmp_path)
    for spec in ("./openclip", "openclip", "local-dir:openclip", "local-dir:./openclip"):
        assert load_teacher(spec, CPU).info.dim == 64
    assert load_teacher("hf", CPU).info.dim == 32  # a folder of that name, not the bare kind


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "is empty"),
        ("./nowhere", "./nowhere does not exist"),
        ("/nowhere/model", "/nowhere/model does not exist"),
        ("{tmp}", "holds neither open_clip_config.json nor config.json"),
        ("hub:org/name", "unknown kind of teacher 'hub'"),
        ("hf-hub", "says only the kind"),
        ("local-dir:", "unknown kind of teacher|says only the kind|is empty"),
        ("no-such-model", "unknown teacher"),
    ],
)
def test_wrong_specs_are_refused(spec: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words) as error:
        describe_teacher_spec(spec.format(tmp=tmp_path))
    assert "\n" not in str(error.value)


def test_describing_loads_no_weights(tmp_path: Path) -> None:
    folder = make_openclip_folder(tmp_path / "model")
    (folder / "open_clip_model.safetensors").write_bytes(b"not weights")
    assert describe_teacher_spec(str(folder)).kind == "local-dir"
    with pytest.raises(UsageError):
        load_teacher(str(folder), CPU)


def test_the_licence_is_shown_when_research_only_weights_load(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    make_openclip_folder(_hub_cache(tmp_path, "apple/MobileCLIP-tiny", monkeypatch))
    teacher = load_teacher("hf-hub:apple/MobileCLIP-tiny", CPU)
    assert "research only" in teacher.info.licence
    assert teacher.info.licence in caplog.text
