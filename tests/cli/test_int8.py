"""`attar export --int8` and what runs its model."""

import json
from pathlib import Path

from tests.cli.commands import Give, World

from attar.data.table import ImageTable
from attar.run import RunFolder
from attar.stages.bundling import images_for_int8


def test_from_export_to_prediction_and_latency(
    give: Give, world: World, finished: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bounds = ["--int8-min-agreement=0", "--int8-min-cosine=0", "--int8-images=5"]
    outcome = give("export", finished, "--int8", *bounds, "--parity-images=2", "--out", bundle)
    assert outcome.status == 0, outcome.err
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["int8"]["training_images"] == 5
    assert str(manifest["int8"]["mean_cosine"]) in outcome.out
    size = (bundle / "model-int8.onnx").stat().st_size
    assert size < (bundle / "model.onnx").stat().st_size / 2
    answers = {}
    for options in ((), ("--int8",)):
        told = give("predict", bundle, world.flat / "00.png", "--json", "--threshold=0", *options)
        answers[options] = json.loads(told.out)
        measured = json.loads(give("latency", bundle, "--runs=1", *options).out)
        assert measured["model"] == ("model-int8.onnx" if options else "model.onnx")
    assert measured["model_mb"] == size / 1e6
    assert answers[()]["confidence"] != answers["--int8",]["confidence"]


def test_a_failed_gate_leaves_a_whole_bundle_and_says_so(
    give: Give, world: World, finished: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    words = ["--int8", "--int8-min-cosine=1", "--parity-images=2", "--out", bundle]
    outcome = give("export", finished, *words)
    assert outcome.status == 1
    assert "model-int8.onnx was not written" in outcome.err
    assert "int8-min-cosine 1" in outcome.err
    assert not (bundle / "model-int8.onnx").exists()
    figures = json.loads((bundle / "bundle.json").read_text())["int8"]
    assert figures["mean_cosine"] < 1
    assert give("predict", bundle, world.flat / "00.png").status == 0
    refused = give("predict", bundle, world.flat / "00.png", "--int8")
    assert refused.status == 2
    assert figures["reason"] in refused.err
    assert give("latency", bundle, "--runs=1", "--int8").status == 2


def test_a_run_that_exports_ends_with_the_same_status(
    give: Give, finished: Path, copy_of_finished: Path
) -> None:
    config = f"--config={finished / 'config.yaml'}"
    words = ["--export", "--export.int8", "--export.int8-min-cosine=1", "--export.parity-images=2"]
    outcome = give("distill", config, "--out", copy_of_finished, *words)
    assert outcome.status == 1
    assert "was not written" in outcome.err
    assert "student" in outcome.out, "its results are shown all the same"
    assert not (copy_of_finished / "bundle" / "model-int8.onnx").exists()


def test_source_images_alone_make_and_judge_it(finished: Path) -> None:
    table = ImageTable.load(RunFolder(finished).images)
    split_of = dict(zip(table.paths, table.splits, strict=True))
    assert set(split_of.values()) == {"train", "val", "test_id"}
    images = images_for_int8(table, ("cat", "dog"))
    assert {split_of[str(path)] for path in images.training} == {"train"}
    assert {split_of[str(path)] for path in images.validation} == {"val"}
    assert len(images.training) == sum(split == "train" for split in table.splits)
    assert set(images.labels) == {-1}, "the folder has no labels"


def test_without_validation_images_nothing_is_trained(
    give: Give, world: World, tmp_path: Path
) -> None:
    words = ["--data", world.domains, "--teacher", world.teacher, "--splits.val-fraction=0"]
    words += ["--export", "--export.int8", "--out", tmp_path / "run"]
    outcome = give("distill", *words)
    assert outcome.status == 2
    assert "--export.int8" in outcome.err
    assert "--splits.val-fraction" in outcome.err
    assert not (tmp_path / "run" / "student").exists()


def test_an_openclip_model_has_none(give: Give, finished: Path, tmp_path: Path) -> None:
    outcome = give("export", finished, "--format", "openclip", "--int8", "--out", tmp_path / "m")
    assert outcome.status == 2
    assert "--int8 belongs to --format onnx" in outcome.err
