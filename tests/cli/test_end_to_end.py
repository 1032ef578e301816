"""Whole jobs as a user does them: one command after the other on small real images."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.cli.commands import FAST, Give, Outcome, World, save_image

from attar.records import Record, read_records
from attar.store.store import Store

BROKEN = {"empty.jpg", "text.png", "half.PNG", "head.webp", "gone.jpeg"}
COMPARED = {"student", "baseline", "untrained", "constant-mean"}
"""What stands side by side with the teacher when a run has its references."""


def succeeded(outcome: Outcome) -> str:
    assert outcome.status == 0, outcome.err
    assert "Traceback" not in outcome.err
    return outcome.out


def named(set_aside: Path) -> set[str]:
    return {Path(entry["path"]).name for entry in json.loads(set_aside.read_text())}


def by_role(results: Path, split: str, metric: str) -> dict[str, float]:
    records: list[Record] = read_records(results)
    return {
        r.role: r.metrics[metric]
        for r in records
        if r.split == split and r.domain == "all" and metric in r.metrics
    }


def test_an_unlabelled_folder_by_separate_commands(
    give: Give, world: World, finished: Path, tmp_path: Path
) -> None:
    store, run, bundle = tmp_path / "store", tmp_path / "run", tmp_path / "bundle"
    data = ["--data", world.photos, "--classes", world.classes]
    embedded = give("embed", *data, "--teacher", world.teacher, "--out", store, "--workers=0")
    assert "24 images, 3 texts" in succeeded(embedded)
    assert "set aside 5 of 29 files" in embedded.err
    assert named(store / "set_aside.json") == BROKEN

    # The store knows everything, so no teacher is named.
    words = ["--method=feature-mse", "--training.steps=4", "--training.batch-size=8", *FAST]
    table = succeeded(give("distill", *data, "--store", store, *words, "--out", run))
    assert "student · feature-mse" in table
    assert named(run / "set_aside.json") == BROKEN
    weights = "student/model.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes(), "one command or many"
    assert set(by_role(run / "results.jsonl", "test_id", "mean_cosine")) == COMPARED

    words = ["--data", world.domains, "--classes", world.classes, "--teacher", world.teacher]
    evaluated = give("evaluate", run, *words, "--workers=0", "--out", tmp_path / "evaluated")
    assert "sketch" in succeeded(evaluated)
    accuracy = by_role(tmp_path / "evaluated" / "results.jsonl", "test_ood", "acc1")
    assert set(accuracy) == {"teacher"} | COMPARED

    succeeded(give("export", run, "--out", bundle, "--parity-images=4"))
    assert json.loads((bundle / "bundle.json").read_text())["teacher"] == world.teacher
    check_predictions(give, bundle, finished / "bundle", world)
    latency = run / "latency.json"
    succeeded(give("latency", bundle, "--runs=2", "--out", latency))
    assert json.loads(latency.read_text())["runs"] == 2
    page = Path(succeeded(give("report", run)).strip())
    assert page == run / "report.html"
    assert "feature-mse" in page.read_text()


def check_predictions(give: Give, bundle: Path, other: Path, world: World) -> None:
    """Two bundles of equal students give the same answers, one for each good file."""

    def answers(of: Path) -> list[dict[str, str]]:
        outcome = give("predict", of, world.photos, "--csv", "--threshold=0")
        return list(csv.DictReader(io.StringIO(outcome.out)))

    first, second = answers(bundle), answers(other)
    assert [Path(row["path"]).name for row in first] == [Path(row["path"]).name for row in second]
    good = [row for row in first if Path(row["path"]).name not in BROKEN]
    assert len(good) == 24
    assert {row["label"] for row in good} <= {"cat", "dog", "horse"}
    assert [row["label"] for row in first] == [row["label"] for row in second]


def test_one_command_does_it_all(give: Give, world: World, finished: Path) -> None:
    assert named(finished / "set_aside.json") == BROKEN
    assert (finished / "done").is_file()
    again = give("distill", f"--config={finished / 'config.yaml'}", f"--out={finished}")
    succeeded(again)
    assert "distill:" not in again.err, "a finished run is not trained again"
    swapped = give("predict", finished / "bundle", world.flat / "00.png", "--json",
                   "--threshold=0", "--labels", world.root / "vocabulary.txt")  # fmt: skip
    answer = json.loads(succeeded(swapped))
    assert answer["label"] in {"house", "tree", "river"}


def test_strict_stops_at_a_broken_file(give: Give, world: World, tmp_path: Path) -> None:
    words = [
        "--data",
        world.photos,
        "--teacher",
        world.teacher,
        "--strict",
        "--out",
        tmp_path / "s",
    ]
    outcome = give("embed", *words)
    assert outcome.status == 1
    assert "5 of 29 files cannot be read" in outcome.err
    assert not (tmp_path / "s" / "store.json").exists()


def test_a_domain_is_held_out_and_a_baseline_stands_beside(
    give: Give, world: World, tmp_path: Path
) -> None:
    data = ["--data", world.domains, "--held-out-domain=sketch", "--training.batch-size=8", *FAST]
    erm, distilled = tmp_path / "erm", tmp_path / "distilled"
    succeeded(give("distill", *data, "--method=erm", "--training.steps=2", "--out", erm))
    words = ["--teacher", world.teacher, "--method=vl2v-adip", "--training.steps=4"]
    words += ["--method.align-share=0.5", "--training.sampler=per-domain", "--baseline", erm]
    table = succeeded(give("distill", *data, *words, "--out", distilled))
    assert "sketch" in table
    held_out = by_role(distilled / "results.jsonl", "held_out", "acc1")
    assert {"teacher", "student", "baseline"} <= set(held_out)
    seen = pq.read_table(distilled / "predictions" / "student-held_out.parquet").to_pydict()
    assert set(seen["domain"]) == {"sketch"}
    assert len(seen["domain"]) == 12
    for split in ("val", "test_id"):
        kept = pq.read_table(distilled / "predictions" / f"student-{split}.parquet").to_pydict()
        assert "sketch" not in kept["domain"]
    lines = (distilled / "metrics.jsonl").read_text().splitlines()
    phases = [json.loads(line)["phase"] for line in lines]
    assert list(dict.fromkeys(phases)) == ["align", "distill"]
    page = Path(succeeded(give("report", distilled, erm, "--out", tmp_path / "both.html")).strip())
    assert "sketch" in page.read_text()


def test_a_store_is_looked_after(give: Give, world: World, finished: Path, tmp_path: Path) -> None:
    store = shutil.copytree(finished / "store", tmp_path / "store")
    facts = json.loads(succeeded(give("store", "info", store)))
    assert (facts["teacher"], facts["image_rows"]) == (world.teacher, 24)
    assert "checksum" in succeeded(give("store", "verify", store))
    words = ["store", "verify", store, "--data", world.flat]
    verified = give(*words, "--teacher", world.teacher, "--sample=8")
    assert "cosine" in succeeded(verified)
    wrong = give(*words, "--teacher", world.other_teacher)
    assert wrong.status == 2
    shard = store / "img_emb" / "img_emb_0.npy"
    rows = np.load(shard)
    np.save(shard, rows[::-1])
    damaged = give("store", "verify", store)
    assert damaged.status == 1
    assert str(shard) in damaged.err
    assert "--repair" in damaged.err
    succeeded(give("store", "verify", store, "--repair"))
    mended = give("embed", "--data", world.flat, "--teacher", world.teacher, "--out", store,
                  "--workers=0")  # fmt: skip
    succeeded(mended)
    np.testing.assert_array_equal(np.load(shard), rows)


def test_published_embeddings_are_enough(
    give: Give, world: World, finished: Path, tmp_path: Path
) -> None:
    store, run = tmp_path / "imported", tmp_path / "run"
    published = shutil.copytree(finished / "store", tmp_path / "published")
    (published / "store.json").unlink()
    said = give("store", "import", published, "--data", world.flat, "--teacher=theirs",
                "--out", store)  # fmt: skip
    assert "24 images matched" in succeeded(said)
    assert Store.open(store).num_texts == 6, "classes and vocabulary"
    words = ["--method=feature-mse", "--training.steps=4", "--training.batch-size=8", *FAST]
    words += ["--data", world.flat, "--classes", world.classes, "--store", store, "--out", run]
    succeeded(give("distill", *words))
    weights = "student/model.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()
    evaluated = give("evaluate", run, "--data", world.flat, "--classes", world.classes,
                     "--workers=0")  # fmt: skip
    succeeded(evaluated)
    results = run / "evaluations" / "flat" / "results.jsonl"
    assert set(by_role(results, "test_ood", "mean_cosine")) == COMPARED


@pytest.mark.parametrize("method", ["feature-mse", "erm"])
def test_a_dry_run_says_one_line_and_leaves_nothing(
    give: Give, world: World, tmp_path: Path, method: str
) -> None:
    words = ["--data", world.domains, "--method", method, "--out", tmp_path / "run", *FAST]
    words += ["--teacher", world.teacher, "--training.steps=300", "--dry-run"]
    (line,) = succeeded(give("distill", *words)).splitlines()
    assert "36 image and 2 text queries to the teacher" in line
    assert "300 training steps" in line
    assert "MB of disk" in line
    assert list(tmp_path.iterdir()) == []


def test_one_image_a_class_is_trained_on_and_nothing_is_measured(
    give: Give, world: World, tmp_path: Path
) -> None:
    for number in range(5):
        save_image(tmp_path / "one" / f"class {number}" / "only.png", number)
    out = succeeded(
        give("distill", "--data", tmp_path / "one", "--teacher", world.teacher, *FAST,
             "--method=feature-mse", "--no-references", "--out", tmp_path / "run")
    )  # fmt: skip
    assert "nothing was measured: all images were trained on" in out
    assert out.splitlines()[-1] == str(tmp_path / "run")
