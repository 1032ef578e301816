"""A real run on folders train and test: what is tested was neither trained nor selected on."""

import logging
from collections import Counter
from pathlib import Path

import pytest
from tiny_runs import CLASSES, distil, write_pictures

from attar.data.splits import SplitConfig
from attar.data.table import ImageTable
from attar.records import read_records
from attar.run import DataConfig, RunFolder


def test_a_test_folder_is_measured_and_never_trained_on(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "attar")
    write_pictures(tmp_path / "photos" / "train", CLASSES, 5, seed=60_000)
    write_pictures(tmp_path / "photos" / "test", CLASSES, 2, seed=70_000)
    copied = (tmp_path / "photos" / "test" / CLASSES[0] / "0.png").read_bytes()
    (tmp_path / "photos" / "train" / CLASSES[0] / "copy.png").write_bytes(copied)
    data = DataConfig(data=(tmp_path / "photos",), templates=str(root / "templates.txt"))
    run = distil(
        tmp_path,
        "run",
        data=data,
        method="erm",
        teacher=None,
        splits=SplitConfig(val_fraction=0.2, test_fraction=0.3),
    )
    images = ImageTable.load(RunFolder(run).images)
    rows = zip(images.names, images.splits, strict=True)
    assert Counter((name.split("/")[0], split) for name, split in rows) == {
        ("train", "train"): 12,
        ("train", None): 1,
        ("train", "val"): 3,
        ("test", "test_id"): 6,
    }
    said = "data: split/class/image: train 16, test 6 images, 3 classes; train 12, val 3, test_id 6"
    assert said in caplog.text
    assert "1 source image left out: identical to images of the test." in caplog.text
    measured = {r.split for r in read_records(run / "results.jsonl") if r.role == "student"}
    assert measured == {"val", "test_id"}
