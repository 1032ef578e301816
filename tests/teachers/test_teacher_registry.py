from pathlib import Path

import pytest
import torch
from tests.doubles import make_hf_clip_folder, make_openclip_folder

from attar.errors import UsageError
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
    ],
)
def test_every_spelling_parses(spec: str, parsed: tuple[str, str]) -> None:
    assert parse_teacher_spec(spec) == parsed


def test_every_kind_has_a_spelling_above() -> None:
    marks = test_every_spelling_parses.pytestmark[0].args[1]
    assert {kind for _, (kind, _) in marks} == set(TEACHERS)


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
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--apple--MobileCLIP-tiny" / "snapshots" / ("0" * 40)
    make_openclip_folder(snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    teacher = load_teacher("hf-hub:apple/MobileCLIP-tiny", CPU)
    assert "research only" in teacher.info.licence
    assert teacher.info.licence in caplog.text
