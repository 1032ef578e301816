from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_suites import by_domain, measure, teacher_cosines
from tests.stages.tiny_runs import CLASSES

from attar.errors import UsageError
from attar.evaluation.features import read_features
from attar.evaluation.zero_shot import TASK
from attar.files import sha256_file
from attar.suites.corruption_kinds import corrupt

KINDS = ("gaussian_noise", "contrast")


def corrupted(root: Path, run: Path, out: Path, **options):
    images = (root / "new",)
    return measure(
        run,
        out,
        "corruptions",
        images=images,
        suite_kinds=KINDS,
        suite_severities=(1, 5),
        **options,
    )


def test_each_kind_and_severity_is_the_accuracy_on_those_pictures(
    root: Path, run: Path, tmp_path: Path
) -> None:
    found = by_domain(corrupted(root, run, tmp_path / "out"), "teacher")
    assert set(found) == {"clean", *KINDS, "all"}
    files = sorted((root / "new").rglob("*.png"))
    labels = [CLASSES.index(file.parent.name) for file in files]
    prompts = [[f"a drawing of a {name}"] for name in CLASSES]

    def accuracy(kind: str, severity: int) -> float:
        pictures = [
            corrupt(Image.open(file), kind, severity, key=sha256_file(file)) for file in files
        ]
        answers = teacher_cosines(root, run, pictures, prompts).argmax(axis=1)
        return float(np.mean(answers == labels))

    assert found["clean"].metrics["acc1"] == pytest.approx(accuracy("clean", 0))
    for kind in KINDS:
        expected = {f"acc1_severity_{severity}": accuracy(kind, severity) for severity in (1, 5)}
        metrics = found[kind].metrics
        assert {name: metrics[name] for name in expected} == pytest.approx(expected)
        assert metrics["acc1"] == pytest.approx(np.mean(list(expected.values())))
    mean = np.mean([found[kind].metrics["acc1"] for kind in KINDS])
    assert found["all"].metrics["acc1"] == pytest.approx(mean)
    assert found["all"].split == "attar-C"
    assert "not comparable" in found["all"].extra["note"]


def test_the_same_seed_measures_the_same_and_a_limit_draws_images(
    root: Path, run: Path, tmp_path: Path
) -> None:
    one, again, other = (
        corrupted(root, run, tmp_path / name, suite_limit=4, suite_seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert [r.metrics for r in one] == [r.metrics for r in again]
    assert {r.num_images for r in one} == {4}
    first, second, third = (
        read_features(tmp_path / name / "features" / "student-attar_C_contrast_5.safetensors")
        for name in ("a", "b", "c")
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)
    assert {r.extra["seed"] for r in other} == {2}


def test_rows_that_an_earlier_command_left_over_other_images_are_named(
    root: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = run.name
    corrupted(root, run, tmp_path, suite_limit=4, others=(str(run),))
    assert "do not compare" not in caplog.text
    records = corrupted(root, run, tmp_path)
    assert {r.num_images for r in records if r.role == "student" and r.task == TASK} == {9}
    assert {r.num_images for r in records if r.role == other and r.task == TASK} == {4}
    assert f"do not compare: {other} ({TASK}); give another --out" in caplog.text


def test_what_cannot_be_corrupted_is_refused(root: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --data"):
        measure(run, tmp_path / "out", "corruptions")
    with pytest.raises(UsageError, match="unknown kind of corruption 'rain'"):
        measure(run, tmp_path / "out", "corruptions", images=(root / "new",), suite_kinds=("rain",))
    with pytest.raises(UsageError, match="--suite-severities 6: give some of 1 2 3 4 5"):
        measure(run, tmp_path / "out", "corruptions", suite_severities=(6,))
