import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import write_metrics, write_predictions

from attar.report.analysis import (
    calibration,
    choose_samples,
    confused_pairs,
    confusion,
    phase_spans,
    training_curves,
)
from attar.report.figures import running_median
from attar.report.read import Predictions, read_run
from attar.report.samples import thumbnail


def predictions(answers: list[str], labels: list[str | None], sure: list[float]) -> Predictions:
    correct = [
        math.nan if b is None else float(a == b) for a, b in zip(answers, labels, strict=True)
    ]
    return Predictions(
        role="student",
        split="held_out",
        names=tuple(f"img_{i}" for i in range(len(answers))),
        paths=(None,) * len(answers),
        domains=(None,) * len(answers),
        labels=tuple(labels),
        answers=tuple(answers),
        confidence=np.array(sure),
        correct=np.array(correct),
    )


def test_calibration_error_by_hand() -> None:
    # One bin near 0.9 with half right (gap 0.4, 2 images), one near 0.5 all right (gap 0.5, 2).
    bins = calibration(predictions(list("aabb"), list("abbb"), [0.9, 0.9, 0.5, 0.5]))
    assert bins.error == pytest.approx((0.4 * 2 + 0.5 * 2) / 4)
    assert bins.counts.sum() == 4
    assert len(bins.counts) == 15


def test_calibration_puts_borders_below_and_skips_unlabelled_images() -> None:
    bins = calibration(predictions(list("abc"), ["a", "b", None], [1 / 15, 1.0, 0.5]))
    assert list(np.flatnonzero(bins.counts)) == [0, 14]


def test_confusion_counts_rows_by_true_class() -> None:
    counts, names = confusion(
        predictions(["c 10", "c 2", "c 2"], ["c 2", "c 2", None], [1.0, 1.0, 1.0])
    )
    assert names == ["c 2", "c 10"]
    assert counts.tolist() == [[1, 1], [0, 0]]


def test_confused_pairs_are_ranked() -> None:
    pairs = confused_pairs(predictions(list("bbcaa"), list("aaaca"), [1.0] * 5))
    assert [(p.label, p.answer, p.count, p.total) for p in pairs] == [
        ("a", "b", 2, 4),
        ("a", "c", 1, 4),
        ("c", "a", 1, 1),
    ]


def test_samples_are_right_wrong_and_unsure_and_never_shown_twice() -> None:
    sure = [0.9, 0.8, 0.7, 0.2, 0.95, 0.6]
    chosen = choose_samples(predictions(list("aabbbb"), list("aaaaab"), sure), None, limit=2)
    groups = {title: rows for title, _, rows in chosen}
    assert list(groups) == ["Right", "Wrong", "Unsure"]
    assert groups["Wrong"] == [4, 2]
    assert groups["Unsure"] == [3, 5]
    assert set(groups["Right"]) == {0, 1}


def test_curves_skip_broken_lines_and_keep_the_last_of_a_step(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    write_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 80, "phase": "distill", "split": "train", "loss": 9.0}\n')
        file.write('[1]\n{"loss": 1.0}\n{"step": 81, "split": "train", "loss": NaN}\n')
    metrics = read_run(tmp_path).metrics
    curves = {curve.name: curve for curve in training_curves(metrics)}
    assert list(curves) == [
        "loss",
        "term: image",
        "term: text",
        "validation: acc1",
        "learning rate",
    ]
    assert curves["loss"].steps == list(range(1, 81))
    assert curves["loss"].values[-1] == 9.0
    assert curves["validation: acc1"].values == pytest.approx([0.55, 0.6, 0.65, 0.7])
    assert phase_spans(metrics[:-1]) == [("align", 0, 20), ("distill", 20, 80)]


def test_running_median_ignores_a_spike() -> None:
    values = np.ones(100)
    values[50] = 1000.0
    assert running_median(values).max() == 1.0
    assert running_median(np.array([1.0, 2.0])).tolist() == [1.5, 1.5]


def test_role_and_split_come_from_the_file_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    write_predictions(tmp_path, "my-own-model", ["a"], ["b"], split="test_id")
    run = read_run(tmp_path)
    assert list(run.predictions) == [("my-own-model", "test_id")]
    assert run.predictions["my-own-model", "test_id"].top5[0][0] == ("a", 0.5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK", "I;16", "LA", "1"])
def test_thumbnails_of_every_mode(tmp_path: Path, mode: str) -> None:
    image = Image.new("I;16", (40, 20), 65535) if mode == "I;16" else Image.new(mode, (40, 20))
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    data = thumbnail(path, 16)
    assert data is not None
    (tmp_path / "t.jpg").write_bytes(data)
    with Image.open(tmp_path / "t.jpg") as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (16, 8))
        if mode in ("RGBA", "LA", "I;16"):  # transparent shows white; full 16 bits are white
            assert min(small.getpixel((4, 4))) > 250


def test_a_turned_photo_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    data = thumbnail(tmp_path / "x.jpg", 16)
    assert data is not None
    (tmp_path / "t.jpg").write_bytes(data)
    with Image.open(tmp_path / "t.jpg") as small:
        assert small.size == (8, 16)


def test_what_is_no_image_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no image")
    assert thumbnail(tmp_path / "x.jpg", 16) is None
    assert thumbnail(tmp_path / "gone.jpg", 16) is None
