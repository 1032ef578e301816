"""A saved student that is not whole any more is refused by the name of the file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attar.errors import AttarError
from attar.students.config import StudentConfig
from attar.students.student import build_student, load_student, save_student


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = StudentConfig(weights="none", image_size=32, projector="mlp")
    return save_student(build_student("test_resnet", 8, config), tmp_path / "student")


def change(file: Path, **changes: Any) -> None:
    """Change fields of attar.json; None takes one out."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize("name", ["model.safetensors", "projector.safetensors", "attar.json"])
@pytest.mark.parametrize("kept", [0.9, 0.01, 0.0])
def test_a_file_that_was_cut_is_named(folder: Path, name: str, kept: float) -> None:
    file = folder / name
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(
        AttarError, match=rf"student/{name} cannot be used .*; copy .*/student again"
    ):
        load_student(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "projector.safetensors"])
def test_a_file_that_is_gone_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(AttarError, match=f"{name} cannot be used .No such file"):
        load_student(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": None}, "'dim' is missing"),
        ({"colour": "red"}, "'colour' is unknown to this version of attar"),
    ],
)
def test_a_field_that_is_missing_or_unknown_is_named(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    change(folder / "attar.json", **changes)
    with pytest.raises(AttarError, match=rf"attar\.json cannot be used \({message}\)"):
        load_student(folder)


def test_what_is_no_list_of_fields_is_named(folder: Path) -> None:
    (folder / "attar.json").write_text("[1, 2]")
    with pytest.raises(AttarError, match="it holds no fields"):
        load_student(folder)


def test_weights_of_another_network_are_named(folder: Path) -> None:
    change(folder / "attar.json", dim=9)
    with pytest.raises(AttarError, match=r"model\.safetensors cannot be used \(its tensors"):
        load_student(folder)


def test_fields_younger_than_the_folder_have_their_defaults(folder: Path) -> None:
    before = load_student(folder)
    change(folder / "attar.json", crop_pct=0.5, gelu=None, class_names=["a", "b"])
    after = load_student(folder)
    assert (after.spec.gelu, after.spec.crop_pct) == (False, 0.5)
    assert after.spec.class_names == ("a", "b")
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name])
