"""What a run was told about asking its teacher holds in every later command on it."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_runs import QUICK, distil

from attar import pipeline
from attar.data.classes import ClassList
from attar.errors import UsageError
from attar.evaluation.models import TEACHER
from attar.export.config import ExportConfig
from attar.files import read_json
from attar.records import read_records
from attar.run import DataConfig, RunFolder
from attar.stages.comparing import Comparison, gather
from attar.stages.embedding import asking_of, features_for_classes
from attar.store.config import EmbedConfig
from attar.store.store import Store
from attar.students.config import StudentConfig
from attar.suites.contestants import _teacher_of

TOLD = EmbedConfig(workers=0, dtype="float32", normalisation="imagenet", batch_size=7)


@pytest.fixture(scope="module")
def told(root: Path) -> Path:
    return distil(root, "told", embed=TOLD)


def test_all_of_it_is_known_again(told: Path, tmp_path: Path) -> None:
    assert asking_of(RunFolder(told)) == TOLD
    paying = {"budget": 1000, "price": 0.5, "rate": 2.0, "request_size": 3, "views": 4, "gone": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"embed": paying}))
    expected = EmbedConfig(budget=1000, price=0.5, rate=2.0, request_size=3)
    assert asking_of(RunFolder(tmp_path)) == expected


def test_new_images_are_asked_about_as_the_old_ones_were(
    root: Path, told: Path, tmp_path: Path
) -> None:
    data = DataConfig(data=(root / "new",), templates="photo")
    asked = gather(Comparison(run=told, data=data, out=tmp_path, config=QUICK))
    assert TEACHER in {record.role for record in read_records(pipeline.evaluate(asked))}
    assert Store.open(told / "store").info.dtype == "float32"


def test_other_classes_are_asked_about_as_the_old_ones_were(told: Path, tmp_path: Path) -> None:
    names, features = features_for_classes(RunFolder(told), ClassList(("boat",), ((),)))
    assert (names, features.shape) == (("boat",), (1, 32))
    texts = _teacher_of(told, None, tmp_path)
    assert texts.class_features([["a tree on paper"]]).shape == (1, 32)


def test_a_run_without_classes_says_what_to_give(root: Path, tmp_path: Path) -> None:
    flat = {"data": DataConfig(data=(root / "flat",)), "references": False}
    run = distil(root, "no-classes", **flat)
    assert read_json(run / "classes.json")["names"] == []
    with pytest.raises(UsageError, match="made without classes: give --classes FILE"):
        pipeline.export(run, tmp_path / "bundle", ExportConfig())


def test_a_run_without_gelu_does_not_start_from_one_with_it(root: Path) -> None:
    with_gelu = StudentConfig(weights="none", image_size=32, gelu=True)
    run = distil(root, "with-gelu", student_config=with_gelu)
    for config, other in ((replace(with_gelu, gelu=False), run), (with_gelu, root / "plain")):
        if not other.exists():
            distil(root, "plain")
        with pytest.raises(UsageError, match=r"GELU behind the projection.*--student\.gelu"):
            distil(root, "not-the-same", start_from=other, student_config=config)
    going_on = distil(root, "gelu-again", start_from=run, student_config=with_gelu)
    assert going_on.is_dir()
