import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from attar.errors import AttarError, UsageError
from attar.runtime.bundle import Bundle
from attar.runtime.tensors import read_tensors


@pytest.fixture
def copy(bundle_path, tmp_path):
    shutil.copytree(bundle_path, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_manifest(bundle, **changes):
    path = bundle / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "name",
    [
        "model.onnx",
        "labels.safetensors",
        "labels.txt",
        "preprocess.json",
        "vocabulary/texts.txt",
        "vocabulary/vocabulary.safetensors",
    ],
)
def test_a_corrupted_or_missing_file_is_named(copy, name):
    file = copy / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(AttarError, match=f"{name} is corrupted"):
        Bundle.open(copy)
    file.unlink()
    with pytest.raises(AttarError, match=f"{name} is missing"):
        Bundle.open(copy)


def test_the_card_may_be_edited(copy):
    (copy / "card.md").write_text("my words")
    assert Bundle.open(copy).labels.texts == ("red", "green", "blue")


def test_a_newer_format_is_refused(copy):
    edit_manifest(copy, version=2, attar_version="9.1")
    with pytest.raises(UsageError, match=r"format 2.*upgrade attar to 9\.1"):
        Bundle.open(copy)


def test_a_manifest_without_its_keys_is_refused(copy):
    edit_manifest(copy, files={})
    with pytest.raises(AttarError, match=r"lacks model\.onnx"):
        Bundle.open(copy)
    (copy / "bundle.json").write_text("[]")
    with pytest.raises(AttarError, match="names no format version"):
        Bundle.open(copy)
    (copy / "bundle.json").write_text("{")
    with pytest.raises(AttarError, match="not valid JSON"):
        Bundle.open(copy)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no bundle"):
        Bundle.open(tmp_path / "absent")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "uint8"])
def test_tensors_are_read_as_safetensors_wrote_them(tmp_path, dtype):
    arrays = {
        "matrix": np.arange(12).reshape(3, 4).astype(dtype),
        "scalar": np.array(5, dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    save_file(arrays, tmp_path / "a.safetensors", metadata={"names": "[]"})
    read = read_tensors(tmp_path / "a.safetensors")
    assert read.metadata == {"names": "[]"}
    assert set(read.arrays) == set(arrays)
    for name, array in arrays.items():
        assert read.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(read.arrays[name], array)


def test_a_damaged_tensor_file_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(100, np.float32)}, path)
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:6],
        whole[:20],
        whole[:-8],
        b"x" * 40,
        whole.replace(b"F32", b"Q99"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(AttarError, match=r"a\.safetensors is not a whole"):
            read_tensors(path)
