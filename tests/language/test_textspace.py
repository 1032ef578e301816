import json
from pathlib import Path

import numpy as np
import pytest
import torch

from attar.cli.main import main
from attar.data.classes import ClassList
from attar.language import textspace
from attar.language.textspace import inspect_text_space, near_pairs
from attar.teachers.base import Teacher

LONG = "It has a body that is longer than what this teacher can read."
CLASSES = ClassList(("cat", "dog", "night owl"), ((), ("It barks.",), (LONG,)))


def test_the_space_equals_numpy_s(teacher: Teacher) -> None:
    found = inspect_text_space(teacher, CLASSES, ("a photo of a {c}",), limit=-1.0)
    texts = ["a photo of a cat", "a photo of a dog. It barks.", f"a photo of a night owl. {LONG}"]
    unit = teacher.encode_texts(texts).double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    values = np.linalg.svd(unit - unit.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(found.spectrum, values[: len(found.spectrum)], atol=1e-5)
    cosines = {(0, 1): unit[0] @ unit[1], (0, 2): unit[0] @ unit[2], (1, 2): unit[1] @ unit[2]}
    assert found.mean_cosine == pytest.approx(np.mean(list(cosines.values())), abs=1e-5)
    assert (found.num_texts, found.num_cut) == (3, 2)
    assert found.num_near == 3
    order = sorted(cosines, key=cosines.get, reverse=True)
    names = [(CLASSES.names[i], CLASSES.names[j]) for i, j in order]
    assert [pair[:2] for pair in found.nearest] == names


@pytest.mark.parametrize("rows", [7, 1024])
def test_near_pairs_equal_brute_force(monkeypatch, rows: int) -> None:
    monkeypatch.setattr(textspace, "_ROWS", rows)
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = torch.nn.functional.normalize(features, dim=1)
    pairs = {(i, j): float(features[i] @ features[j]) for i in range(40) for j in range(i + 1, 40)}
    above = sorted((cosine for cosine in pairs.values() if cosine > 0.9), reverse=True)
    count, nearest = near_pairs(features, 0.9)
    assert count == len(above) > textspace.SHOWN_PAIRS
    assert [cosine for *_, cosine in nearest] == pytest.approx(above[: textspace.SHOWN_PAIRS])
    assert all(pairs[i, j] == pytest.approx(cosine) for i, j, cosine in nearest)
    assert near_pairs(features, 1.5) == (0, [])


def test_the_command_shows_before_and_after(tmp_path: Path, teacher_folder: Path, capfd) -> None:
    classes, given = tmp_path / "classes.txt", tmp_path / "given.json"
    classes.write_text("cat\ndog\nowl\n")
    given.write_text(json.dumps({"cat": ["Soft."], "dog": [LONG], "owl": []}))
    words = ["describe", classes, "--source=file", "--file", given, "--near=-1"]
    words += ["--out", tmp_path / "out.json", "--teacher", teacher_folder]
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "2 of 3 classes described" in out
    assert "2 of 3 texts are longer" in out
    assert "singular value 1" in out
    assert "mean cosine of two classes" in out
    assert "3 before, 3 after" in out
    assert "cat / dog" in out
