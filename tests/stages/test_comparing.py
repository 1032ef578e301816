"""What `attar evaluate` puts beside each other, after tiny real runs."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import CLASSES, QUICK, distil

from attar import pipeline
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.evidence import NotMeasurable
from attar.files import read_json
from attar.records import read_records
from attar.run import DataConfig
from attar.runtime.bundle import Bundle
from attar.stages.comparing import Comparison, gather
from attar.stages.measuring import EvaluationRequest
from attar.store.store import Store


def compare(
    path: Path, data: Path, out: Path | None, *, templates: str = "photo", **asked
) -> EvaluationRequest:
    images = DataConfig(data=(data,), templates=templates)
    return gather(Comparison(run=path, data=images, out=out, config=QUICK, **asked))


def roles(request: EvaluationRequest) -> set[str]:
    return {model.role for model in request.models}


def measured(request: EvaluationRequest) -> dict[str, set[str]]:
    """Return the roles that each task has records of."""
    tasks: dict[str, set[str]] = {}
    for record in read_records(pipeline.evaluate(request)):
        tasks.setdefault(record.task, set()).add(record.role)
    return tasks


def test_the_student_knows_its_teacher(run: Path, bundle: Path) -> None:
    identity = Store.open(run / "store").info.teacher.identity
    assert read_json(run / "student" / "attar.json")["teacher_identity"] == identity
    assert read_json(bundle / "bundle.json")["teacher_identity"] == identity


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_another_teacher_of_equal_width_is_refused(
    root: Path, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    with pytest.raises(NotMeasurable, match="distilled from another teacher"):
        compare(path, root / "new", tmp_path, teacher=f"local-dir:{root / 'other-teacher'}")
    assert not (tmp_path / "store").exists(), "it was asked nothing"


def test_a_baseline_of_another_teacher_is_left_out_and_said(
    root: Path, run: Path, other_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = compare(run, root / "new", tmp_path, baseline=other_run)
    found = measured(request)
    assert "baseline" not in found["zeroshot_classification"] | found["fidelity"]
    assert "student" in found["zeroshot_classification"] & found["fidelity"]
    assert "baseline (timm/mobilenetv3_small_050) classifies nothing" in caplog.text
    assert not (tmp_path / "predictions" / "baseline-test_ood.parquet").exists()


def test_a_run_with_a_baseline_of_another_teacher(
    root: Path, other_run: Path, tmp_path: Path
) -> None:
    run = distil(root, "beside-another", baseline=other_run)
    found = {r.role for r in read_records(run / "results.jsonl")}
    assert "baseline" not in found
    assert {"student", "projection-only"} <= found


@pytest.mark.parametrize("data", ["new", "flat"])
def test_the_runs_own_classes_and_prompts_are_the_default(
    root: Path, run: Path, data: str, tmp_path: Path
) -> None:
    request = compare(run, root / data, tmp_path)
    assert request.images.class_names == CLASSES
    texts = Store.open(run / "store")
    wanted = [texts.text_features([f"a drawing of a {c}", f"a {c} on paper"]) for c in CLASSES]
    means = [
        torch.nn.functional.normalize(torch.tensor(w, dtype=torch.float32), dim=-1).mean(dim=0)
        for w in wanted
    ]
    expected = torch.nn.functional.normalize(torch.stack(means), dim=-1)
    assert request.class_features is not None
    assert torch.allclose(request.class_features, expected, atol=1e-3)


def test_other_classes_are_described_as_the_run_describes_its_own(
    root: Path, run: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    request = compare(copied, root / "other-classes", tmp_path / "out")
    assert request.images.class_names == ("boat", "tree")
    assert Store.open(copied / "store").has_texts(["a drawing of a boat", "a tree on paper"]).all()
    assert not Store.open(copied / "store").has_texts(["a photo of a boat."]).any()


def test_other_templates_may_be_asked_for(root: Path, run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "templates.txt").write_text("{c}!\n")
    templates = str(tmp_path / "templates.txt")
    compare(copied, root / "new", tmp_path / "out", templates=templates)
    assert Store.open(copied / "store").has_texts(["cat!", "dog!", "horse!"]).all()


def test_a_plain_classifier_keeps_its_classes_on_part_of_them(
    root: Path, plain_run: Path, tmp_path: Path
) -> None:
    request = compare(plain_run, root / "part", tmp_path)
    assert request.images.class_names == CLASSES
    assert set(request.images.labels) == {0, 1}
    assert measured(request)["zeroshot_classification"] == {"student"}


def test_the_references_stand_beside_the_student(root: Path, run: Path, tmp_path: Path) -> None:
    request = compare(run, root / "new", tmp_path)
    everyone = {"teacher", "student", "baseline", "untrained", "constant-mean"}
    assert roles(request) == everyone
    (baseline,) = (m for m in request.models if m.role == "baseline")
    assert baseline.method == "projection-only"
    assert measured(request)["zeroshot_classification"] == everyone


def test_a_given_baseline_takes_the_place_of_the_fitted_projection(
    root: Path, run: Path, plain_run: Path, tmp_path: Path
) -> None:
    request = compare(run, root / "new", tmp_path, baseline=plain_run)
    (baseline,) = (m for m in request.models if m.role == "baseline")
    assert baseline.method == "erm"
    assert "projection-only" in roles(request)


def test_the_runs_own_baseline_is_shown_again(root: Path, plain_run: Path, tmp_path: Path) -> None:
    run = distil(root, "with-baseline", baseline=plain_run)
    (baseline,) = (m for m in compare(run, root / "new", tmp_path).models if m.role == "baseline")
    assert baseline.method == "erm"


def test_a_bundle_is_evaluated_alone_and_stays_as_it_is(root: Path, bundle: Path) -> None:
    before = sorted(bundle.rglob("*"))
    request = compare(bundle, root / "new", None)
    assert request.out == bundle.parent / "evaluations" / "new"
    assert roles(request) == {"student"}
    assert measured(request) == {"zeroshot_classification": {"student"}}
    assert sorted(bundle.rglob("*")) == before


def test_a_bundle_says_what_its_run_says(
    root: Path, run: Path, bundle: Path, tmp_path: Path
) -> None:
    accuracy = {}
    for path in (run, bundle):
        results = pipeline.evaluate(compare(path, root / "new", tmp_path / path.name))
        records = [r for r in read_records(results) if r.role == "student"]
        accuracy[path] = [r.metrics["acc1"] for r in records if "acc1" in r.metrics]
    assert accuracy[run] == accuracy[bundle] != []


def test_a_bundle_beside_its_teacher(root: Path, bundle: Path, tmp_path: Path) -> None:
    teacher = f"local-dir:{root / 'teacher'}"
    request = compare(bundle, root / "new", tmp_path, teacher=teacher)
    assert torch.equal(request.class_features, torch.tensor(Bundle.open(bundle).labels.features))
    assert measured(request)["fidelity"] == {"student"}


def test_a_bundle_alone_refuses_classes_that_it_does_not_carry(
    root: Path, bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'boat' and 1 more is not in its labels"):
        compare(bundle, root / "other-classes", tmp_path)


def test_images_that_the_run_learnt_from_are_left_out(
    root: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = ImageTable.load(run / "images.parquet")
    kept = {k for k, s in zip(images.keys, images.splits, strict=True) if s == "test_id"}
    assert 0 < len(kept) < len(images)
    with caplog.at_level(logging.WARNING):
        request = compare(run, root / "seen", tmp_path)
    assert set(request.images.keys) == kept
    assert f"left out {len(images) - len(kept)} of {len(images)} images" in caplog.text


def test_the_images_that_a_run_learnt_from_can_be_asked_for(
    root: Path, run: Path, tmp_path: Path
) -> None:
    images = ImageTable.load(run / "images.parquet")
    trained = {k for k, s in zip(images.keys, images.splits, strict=True) if s == "train"}
    assert set(compare(run, root / "seen", tmp_path, split="train").images.keys) == trained
    with pytest.raises(UsageError, match="trained on none"):
        compare(run, root / "new", tmp_path / "new", split="train")


def test_nothing_but_known_images_is_refused(root: Path, run: Path, tmp_path: Path) -> None:
    images = ImageTable.load(run / "images.parquet")
    for path, name, split in zip(images.paths, images.names, images.splits, strict=True):
        if split != "test_id":
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "data" / name)
    with pytest.raises(UsageError, match="trained or selected on all"):
        compare(run, tmp_path / "data", tmp_path / "out")


def test_folders_of_one_name_are_told_apart_by_their_places(
    root: Path, run: Path, bundle: Path, tmp_path: Path
) -> None:
    others = [tmp_path / place / "bundle" for place in ("small", "large")]
    for other in others:
        shutil.copytree(bundle, other)
    asked = compare(run, root / "new", tmp_path / "out", others=(*map(str, others), str(bundle)))
    rows = roles(asked) - {"student", "teacher", "untrained", "constant-mean"}
    assert {row.rpartition("/")[2] for row in rows} >= {"bundle"}
    assert len([row for row in rows if row.endswith("bundle")]) == 3
    two = compare(run, root / "new", tmp_path / "out", others=tuple(map(str, others)))
    assert {"small/bundle", "large/bundle"} <= roles(two)
    twice = compare(run, root / "new", tmp_path / "out", others=(str(bundle), str(bundle)))
    with pytest.raises(UsageError, match="two models have the role"):
        pipeline.evaluate(twice)


def test_an_answer_that_cannot_be_given_again_leaves_no_old_one(
    root: Path, run: Path, plain_run: Path, tmp_path: Path
) -> None:
    """A plain classifier knows its own classes alone: no old numbers beside the new classes."""
    first = measured(compare(run, root / "new", tmp_path, baseline=plain_run))
    assert "baseline" in first["zeroshot_classification"]
    (tmp_path / "classes.txt").write_text("boat\ncat\ndog\nhorse\n")
    images = DataConfig(data=(root / "new",), classes=tmp_path / "classes.txt", templates="photo")
    asked = gather(Comparison(run=run, data=images, out=tmp_path, config=QUICK, baseline=plain_run))
    again = measured(asked)
    assert "student" in again["zeroshot_classification"]
    assert "baseline" not in again["zeroshot_classification"]
