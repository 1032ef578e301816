"""`attar export --format openclip`: from a run to a model of OpenCLIP's."""

import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from tiny_runs import CLASSES, distil

from attar import pipeline
from attar.cli.main import main
from attar.errors import UsageError
from attar.export.config import OpenCLIPConfig
from attar.files import read_json
from attar.students.config import StudentConfig
from attar.students.student import load_student


@pytest.fixture(scope="module")
def unpaired(root: Path) -> Path:
    """Return a run of dime-fm, whose student keeps the whole shorter side and has no bias."""
    sentences = root / "few-sentences.txt"
    sentences.write_text("A cat.\nTwo dogs.\nA red house.\n")
    return distil(root, "openclip-run", method="dime-fm", texts=sentences)


def test_a_dime_fm_student_has_one_matrix_for_a_projection(unpaired: Path) -> None:
    student = load_student(unpaired)
    assert (student.spec.projection_bias, student.spec.crop_pct) == (False, 1.0)
    projection = student.projection()
    assert not projection.bias.any(), "the bias is zero after training"
    untrained = load_student(unpaired / "references" / "untrained")
    assert not torch.equal(projection.weight, untrained.projection().weight), "which changed this"
    fitted = load_student(unpaired / "references" / "projection-only")
    assert fitted.projection().bias.any(), "the reference that is fitted has one"


def test_the_command_writes_a_model_of_open_clips(
    unpaired: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["export", str(unpaired), "--format", "openclip", "--out", str(tmp_path / "model")])
    assert done.value.code in (None, 0)
    assert "proven on 16 images" in capsys.readouterr().out
    facts = read_json(tmp_path / "model" / "export.json")
    assert (facts["method"], facts["parity"]["texts"]) == ("dime-fm", 2 + len(CLASSES))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "library_name: open_clip" in card
    assert "| student |" in card, "the run's results"
    model = open_clip.create_model(f"local-dir:{tmp_path / 'model'}").eval()
    pixels = torch.rand(2, 3, 32, 32)
    student = load_student(unpaired)
    with torch.no_grad():
        expected = student(pixels).features
        features = model.encode_image((pixels - student.mean) / student.std)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "openclip", "--threshold", "0.5"], "--threshold belongs to --format onnx"),
        (["--format", "openclip", "--classes", "c.txt"], "--classes belongs to --format onnx"),
        (["--format", "openclip", "--tolerance", "1"], "--tolerance belongs to --format onnx"),
        (["--format", "openclip", "--min-cosine", "0.5"], "--min-cosine belongs to"),
        (["--whole-image"], "--whole-image belongs to --format openclip"),
    ],
)
def test_options_of_the_other_format_are_refused(
    words: list[str], message: str, unpaired: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["export", str(unpaired), *words])
    assert done.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_that_cannot_be_one_is_refused(
    run: Path, plain_run: Path, unpaired: Path, root: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--whole-image"):
        pipeline.export_openclip(run, tmp_path / "model")
    with pytest.raises(UsageError, match="plain classifier"):
        pipeline.export_openclip(plain_run, tmp_path / "model")
    other = OpenCLIPConfig(teacher=str(root / "other-teacher"))
    with pytest.raises(UsageError, match="is not the teacher"):
        pipeline.export_openclip(unpaired, tmp_path / "model", other)
    unfinished = Path(shutil.copytree(unpaired, tmp_path / "unfinished"))
    (unfinished / "done").unlink()
    with pytest.raises(UsageError, match="not finished"):
        pipeline.export_openclip(unfinished, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_bias_where_none_should_be_is_refused(run: Path, root: Path, unpaired: Path) -> None:
    texts = {"method": "dime-fm", "texts": root / "few-sentences.txt"}
    with pytest.raises(UsageError, match=r"has a bias.*--student\.projection-bias"):
        distil(root, "from-a-bias", start_from=run, **texts)
    fitted = StudentConfig(weights="none", image_size=32, projection="fitted")
    with pytest.raises(UsageError, match=r"fitted comes with a bias.*--student\.projection-bias"):
        distil(root, "fitted", student_config=fitted, **texts)
    with_bias = StudentConfig(weights="none", image_size=32, projection_bias=True)
    going_on = distil(root, "with-a-bias", start_from=run, student_config=with_bias, **texts)
    assert load_student(going_on).projection().bias.any()
