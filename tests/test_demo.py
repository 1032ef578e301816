"""The demo, with a small teacher and a small student: the whole path, offline."""

import json
import logging
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tests.doubles import make_openclip_folder

from attar.cli.main import main
from attar.data.emoji import EMOJI_FAMILIES, HELD_OUT_FAMILY
from attar.demo import DemoConfig, DemoResult, run_demo
from attar.errors import UsageError
from attar.records import read_records
from attar.run import RunFolder
from attar.runtime.bundle import Bundle
from attar.runtime.predict import Predictor

CONCEPTS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoConfig]:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    make_openclip_folder(folder, embed_dim=32, image_size=32, context_length=8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield DemoConfig(
        teacher=f"local-dir:{folder}",
        student="test_resnet",
        concepts=CONCEPTS,
        steps=3,
        image_size=32,
    )
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "my demo"


@pytest.fixture(scope="module")
def result(config: DemoConfig, out: Path) -> DemoResult:
    return run_demo(config, out)


def test_it_ends_with_two_runs_a_bundle_and_a_page(result: DemoResult, out: Path) -> None:
    assert (result.distilled, result.baseline) == (out / "vl2v-adip", out / "erm")
    for run in (result.distilled, result.baseline):
        assert RunFolder(run).done.is_file()
    assert result.bundle == result.distilled / "bundle"
    assert result.page == result.distilled / "report.html"
    page = result.page.read_text(encoding="utf-8")
    for word in (HELD_OUT_FAMILY, "vl2v-adip", "erm", "test_resnet", "teacher"):
        assert word in page
    latency = json.loads((result.distilled / "latency.json").read_text())
    assert latency["median_ms"] > 0
    assert latency["threads"] == 2


def test_teacher_student_and_baseline_stand_side_by_side_on_the_held_out_family(
    result: DemoResult,
) -> None:
    records = read_records(result.distilled / "results.jsonl")
    held_out = {
        (record.role, record.method): record
        for record in records
        if record.split == "held_out" and record.domain == "all" and "acc1" in record.metrics
    }
    wanted = {("teacher", ""), ("student", "vl2v-adip"), ("baseline", "erm")}
    assert wanted <= set(held_out)
    assert {held_out[row].num_images for row in wanted} == {CONCEPTS}
    for role in ("teacher", "student", "baseline"):
        table = pq.read_table(result.distilled / "predictions" / f"{role}-held_out.parquet")
        assert set(table["domain"].to_pylist()) == {HELD_OUT_FAMILY}
        inside = pq.read_table(result.distilled / "predictions" / f"{role}-val.parquet")
        assert HELD_OUT_FAMILY not in inside["domain"].to_pylist()


def test_the_bundle_knows_the_concepts(result: DemoResult, out: Path) -> None:
    pictures = sorted((out / "emoji" / HELD_OUT_FAMILY).rglob("*.webp"))
    assert len(pictures) == CONCEPTS
    predictions = Predictor(Bundle.open(result.bundle), threshold=0.0).predict(pictures)
    names = {path.parent.name for path in pictures}
    assert {prediction.label for prediction in predictions} <= names
    assert {family.name for family in (out / "emoji").iterdir()} == set(EMOJI_FAMILIES)


def test_the_commands_make_the_same_runs(result: DemoResult) -> None:
    level = logging.getLogger("attar").level
    for run in (result.baseline, result.distilled):
        words = shlex.split((run / "command.txt").read_text())
        assert words[:2] == ["attar", "distill"]
        made = (run / "student" / "model.safetensors").stat().st_mtime_ns
        with pytest.raises(SystemExit) as stopped:
            main(words[1:])  # another configuration would be refused, a missing run made
        assert stopped.value.code == 0
        assert (run / "student" / "model.safetensors").stat().st_mtime_ns == made
    logging.getLogger("attar").setLevel(level)


def test_called_again_it_goes_on(
    config: DemoConfig, result: DemoResult, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [
        *(run / "student" / "model.safetensors" for run in (result.distilled, result.baseline)),
        result.bundle / "model.onnx",
        out / "store" / "img_emb" / "img_emb_0.npy",
        result.distilled / "results.jsonl",
    ]
    before = [path.stat().st_mtime_ns for path in kept]
    result.page.unlink()
    assert run_demo(config, out) == result
    assert result.page.is_file()
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_another_demo_in_the_same_place_is_refused(
    config: DemoConfig, result: DemoResult, out: Path
) -> None:
    with pytest.raises(UsageError, match=r"training\.steps 3 there, 4 asked"):
        run_demo(replace(config, steps=4), out)
    with pytest.raises(UsageError, match="holds files that are not of this emoji set"):
        run_demo(replace(config, seed=1), out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "poket"}, "'poket': did you mean 'pocket'"),
        ({"concepts": 4}, "--concepts 4: the demo needs 5 or more"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_demo(replace(DemoConfig(), **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
