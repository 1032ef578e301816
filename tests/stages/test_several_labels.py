"""Several labels an image, end to end: tiny real runs on scenes of coloured squares."""

import csv
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from tests.doubles import make_openclip_folder
from tests.stages.several_labels_reference import reference_metrics, reference_probabilities

from attar import pipeline
from attar.data.splits import SplitConfig
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.models import student_transform
from attar.export.config import ExportConfig
from attar.files import read_json
from attar.methods.dualcoop import PositiveNegativePrompts
from attar.records import Record, read_records
from attar.report.page import write_report
from attar.report.several_labels import label_lines
from attar.run import DataConfig, RunConfig, RunFolder
from attar.stages.comparing import Comparison, gather
from attar.stages.images import read_image_table
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig
from attar.students.student import load_student
from attar.teachers.registry import load_teacher
from attar.teachers.text_embedding import prompt_encoder
from attar.training.config import TrainingConfig

COLOURS = {
    "black": (10, 10, 10),
    "blue": (30, 40, 220),
    "green": (30, 190, 40),
    "orange": (240, 140, 20),
    "red": (220, 30, 30),
    "white": (245, 245, 245),
}
SEEN, UNSEEN = ("black", "green", "red", "white"), ("blue", "orange")
COUNTS = {"train": 14, "val": 4, "few_shot": 4, "test_id": 8, "unseen_classes": 10}
TAU = 0.07
METRICS = ("m1", "f1_paper", "macro_f1")


def write_scenes(folder: Path) -> None:
    """Write scenes of two or three squares, and two manifests: with and without few-shot scenes."""
    generator = np.random.default_rng(0)
    rows = []
    for split, count in COUNTS.items():
        for number in range(count):
            names = list(generator.choice(SEEN, 2, replace=False))
            if split in ("few_shot", "unseen_classes"):
                names = [names[0], UNSEEN[number % 2], *names[1 : 1 + number % 2]]
            pixels = generator.integers(90, 110, (64, 64, 3), dtype=np.uint8)
            places = generator.choice(4, len(names), replace=False)
            for name, place in zip(names, places, strict=True):
                top, left = 32 * (place // 2) + 4, 32 * (place % 2) + 4
                pixels[top : top + 24, left : left + 24] = COLOURS[name]
            path = f"{split}-{number}.png"
            Image.fromarray(pixels).save(folder / path)
            rows.append((path, "|".join(names), split))
    without = [row for row in rows if row[-1] != "few_shot"]
    for name, listed in (("all.csv", rows), ("zero_shot.csv", without)):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("path", "labels", "split"), *listed])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    make_openclip_folder(folder / "teacher", embed_dim=32, image_size=32, context_length=12)
    write_scenes(folder)
    return folder


def run_of(root: Path, name: str, *, manifest: str = "zero_shot.csv", **changes: object) -> Path:
    config = RunConfig(
        data=DataConfig(data=(root / manifest,)),
        teacher=f"local-dir:{root / 'teacher'}",
        store=root / "store",
        student="mobilenetv3_small_050",
        method="li2023-multilabel",
        method_options={"context": 3},
        student_config=StudentConfig(weights="none", image_size=64),
        training=TrainingConfig(steps=3, batch_size=8, workers=0, precision="fp32", lr=0.01),
        embed=EmbedConfig(workers=0),
        evaluation=EvaluationConfig(workers=0),
    )
    return pipeline.distill(replace(config, **changes), root / name, estimated=False)


def closed_set(root: Path, name: str, **changes: object) -> Path:
    options = {"method": "closed-set-multilabel", "method_options": {}, "teacher": None}
    return run_of(root, name, **{**options, "store": None, **changes})


@pytest.fixture(scope="module")
def run(scenes: Path) -> Path:
    return run_of(scenes, "run")


@pytest.fixture(scope="module")
def few_shot(scenes: Path, run: Path) -> Path:
    return run_of(
        scenes,
        "few-shot",
        manifest="all.csv",
        start_from=run,
        baseline=run,
        training=TrainingConfig(
            steps=1, batch_size=8, workers=0, precision="fp32", sampler="half-few-shot", lr=1e-9
        ),
    )


@pytest.fixture(scope="module")
def plain(scenes: Path) -> Path:
    return closed_set(scenes, "plain")


def found(run: Path, role: str = "student") -> dict[tuple[str, str], Record]:
    records = [r for r in read_records(run / "results.jsonl") if r.role == role]
    assert {record.task for record in records} <= {"multi_label"}
    return {(record.split, record.extra["labels"]): record for record in records}


def truth_of(images: ImageTable, names: tuple[str, ...]):
    sets = [{images.class_names[i] for i in labels} for labels in images.label_sets]
    return np.array([[name in of for name in names] for of in sets])


def split_of(run: Path, split: str) -> ImageTable:
    images = ImageTable.load(run / "images.parquet")
    return images.select([i for i, s in enumerate(images.splits) if s == split])


def pixels_of(run: Path, images: ImageTable) -> torch.Tensor:
    transform = student_transform(load_student(run))
    return torch.stack([transform(Image.open(p).convert("RGB")) for p in images.paths]) / 255


def expected_of(run: Path, split: str) -> dict[str, np.ndarray]:
    """Return each label's probabilities [N], from the saved student, prompts and bias alone."""
    student, prompts = load_student(run), load_file(run / "class_features.safetensors")
    with torch.no_grad():
        outputs = student(pixels_of(run, split_of(run, split)), regions=True)
    regions = outputs.regions.double().numpy()
    bias = float(load_file(run / "objective.safetensors")["distill.bias"])
    positive, negative = (prompts[k].astype(np.float64) for k in ("positive", "negative"))
    probabilities = reference_probabilities(regions, positive, negative, bias, TAU)
    names = ImageTable.load(run / "images.parquet").class_names
    return dict(zip(names, probabilities.T, strict=True))


@pytest.mark.parametrize("split", ["test_id", "unseen_classes"])
@pytest.mark.parametrize("which", ["run", "few_shot"])
def test_the_numbers_follow_from_what_is_saved(
    which: str, split: str, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(which)
    images, probabilities = split_of(run, split), expected_of(run, split)
    stored = load_file(run / "features" / f"student-{split}.safetensors")["features"]
    assert stored == pytest.approx(np.array([probabilities[c] for c in COLOURS]).T, abs=1e-4)
    assert stored.std() > 1e-3
    records = {k[1]: r for k, r in found(run).items() if k[0] == split}
    groups = {"seen": SEEN, "unseen": UNSEEN} if split == "unseen_classes" else {"seen": SEEN}
    assert records.keys() == groups.keys()
    for group, names in groups.items():
        predicted = np.array([probabilities[name] for name in names]).T > 0.5
        expected = reference_metrics(predicted, truth_of(images, names))
        record = records[group]
        assert [record.metrics[m] for m in METRICS] == pytest.approx(expected)
        assert (record.num_images, record.domain) == (COUNTS[split], "all")
        assert record.extra["num_classes"] == len(names)
        assert record.method == "li2023-multilabel"


def test_a_closed_set_answers_for_the_labels_it_knows(scenes: Path, plain: Path) -> None:
    assert load_student(plain).spec.class_names == SEEN
    assert found(plain).keys() == {
        ("val", "seen"),
        ("test_id", "seen"),
        ("unseen_classes", "seen"),
    }
    more = closed_set(scenes, "more", manifest="all.csv", start_from=plain)
    assert load_student(more).spec.class_names == tuple(COLOURS)
    assert ("unseen_classes", "unseen") in found(more)
    with torch.no_grad():
        images = split_of(more, "unseen_classes")
        logits = load_student(more)(pixels_of(more, images)).features.numpy()
    for group, names in (("seen", SEEN), ("unseen", UNSEEN)):
        columns = [list(COLOURS).index(name) for name in names]
        predicted = 1 / (1 + np.exp(-logits[:, columns])) > 0.5
        record = found(more)["unseen_classes", group]
        expected = reference_metrics(predicted, truth_of(images, names))
        assert [record.metrics[m] for m in METRICS] == pytest.approx(expected)


def test_training_sees_seen_labels_and_few_shot_all(run: Path, few_shot: Path) -> None:
    for path, width in ((run, SEEN), (few_shot, tuple(COLOURS))):
        student = load_student(path)
        assert student.spec.head == "embedding"
        assert student.spec.dim == 32
        prompts = load_file(path / "class_features.safetensors")
        assert {k: v.shape for k, v in prompts.items()} == {
            "positive": (6, 32),
            "negative": (6, 32),
        }
        table = split_of(path, "few_shot")
        assert len(table) == (COUNTS["few_shot"] if width != SEEN else 0)
    own = load_tensors(run / "objective.safetensors")
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    assert shapes == {
        "class_features.positive.context": (3, 32),
        "class_features.negative.context": (3, 32),
        "distill.bias": (),
    }
    assert float(own["distill.bias"]) != 0


def test_prompts_of_unseen_labels_are_the_learnt_contexts(scenes: Path, run: Path) -> None:
    own = load_tensors(run / "objective.safetensors")
    encoder = prompt_encoder(load_teacher(f"local-dir:{scenes / 'teacher'}"))
    drawn = PositiveNegativePrompts.draw(encoder, list(COLOURS), length=3, seed=0)
    start = {name: value.clone() for name, value in drawn.state_dict().items()}
    learnt = {k.removeprefix("class_features."): v for k, v in own.items() if "context" in k}
    assert all(not torch.equal(start[name], value) for name, value in learnt.items())
    drawn.load_state_dict(learnt)
    saved = load_tensors(run / "class_features.safetensors")
    with torch.no_grad():
        expected = drawn()
    assert torch.allclose(torch.cat([saved["positive"], saved["negative"]]), expected, atol=1e-6)


def test_few_shot_learning_goes_on_where_the_run_ended(run: Path, few_shot: Path) -> None:
    """At a learning rate of next to nothing everything learnt is still there."""
    before, after = (load_tensors(path / "objective.safetensors") for path in (run, few_shot))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)
    records = found(few_shot, "baseline")
    assert records["unseen_classes", "unseen"].metrics == pytest.approx(
        found(run)["unseen_classes", "unseen"].metrics
    )


def test_validation_sees_macro_f1_and_chooses_by_it(scenes: Path, run: Path) -> None:
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if "val/" in line]
    assert len(lines) == 1
    record = found(run)["val", "seen"]
    for metric in METRICS:
        assert f'"val/{metric}": {record.metrics[metric]}' in lines[0]
    training = TrainingConfig(
        steps=2,
        batch_size=8,
        workers=0,
        precision="fp32",
        selection="best",
        snapshots=2,
        epochs=None,
    )
    best = run_of(scenes, "best", training=training)
    assert ("unseen_classes", "unseen") in found(best)


def test_snapshots_average_seen_and_unseen_labels_apart(scenes: Path) -> None:
    training = TrainingConfig(epochs=2, batch_size=14, workers=0, precision="fp32", snapshots=2)
    path = run_of(scenes, "snapshots", training=training)
    records = found(path, "student, mean of the last epochs")
    assert {("unseen_classes", "seen"), ("unseen_classes", "unseen")} <= records.keys()
    assert all(record.extra["students"] == 2 for record in records.values())


def test_who_gives_no_labels_is_left_out_and_said(
    scenes: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not (run / "references").exists()
    fitted = StudentConfig(weights="none", image_size=64, projection="fitted")
    with caplog.at_level(logging.INFO, "attar"):
        other = run_of(scenes, "fitted", student_config=fitted)
    assert (other / "references" / "projection-only").is_dir()
    assert {record.role for record in read_records(other / "results.jsonl")} == {"student"}
    (line,) = [message for message in caplog.messages if "left out" in message]
    assert line.endswith("as they give none: teacher, baseline, untrained, constant-mean")


def test_other_images_are_evaluated(
    scenes: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataConfig(data=(scenes / "all.csv",))
    quick = EvaluationConfig(workers=0)
    with caplog.at_level(logging.WARNING):
        asked = gather(Comparison(run=run, data=data, out=tmp_path, config=quick))
    left = COUNTS["train"] + COUNTS["val"]
    assert f"left out {left} of {sum(COUNTS.values())} images" in caplog.text
    records = read_records(pipeline.evaluate(asked))
    assert {record.extra["labels"] for record in records} == {"seen", "unseen"}
    assert {record.num_images for record in records} == {sum(COUNTS.values()) - left}


def test_a_subset_of_the_labels_is_enough(scenes: Path, run: Path, tmp_path: Path) -> None:
    rows = [("path", "labels"), ("unseen_classes-0.png", "blue|red")]
    for name, _ in rows[1:]:
        shutil.copy(scenes / name, tmp_path / name)
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = DataConfig(data=(tmp_path / "list.csv",))
    asked = gather(Comparison(run=run, data=data, out=tmp_path / "out"))
    assert asked.images.class_names == tuple(COLOURS)
    records = {r.extra["labels"]: r for r in read_records(pipeline.evaluate(asked))}
    assert {k: r.extra["num_classes"] for k, r in records.items()} == {"seen": 4, "unseen": 2}


def test_the_report_shows_them(few_shot: Path, plain: Path, tmp_path: Path) -> None:
    page = write_report([few_shot, plain], tmp_path / "report.html").read_text()
    assert "Several labels an image" in page
    assert "images with unseen classes, unseen labels" in page
    lines = label_lines(read_records(few_shot / "results.jsonl"))
    assert lines[0][:2] == ("images and labels", "model")
    record = found(few_shot)["unseen_classes", "unseen"]
    wanted = [f"{100 * record.metrics[metric]:.1f}" for metric in METRICS]
    rows = [line for line in lines if line[0] == "images with unseen classes, unseen labels"]
    assert list(rows[0]) == [
        "images with unseen classes, unseen labels",
        "student · li2023-multilabel",
        "10",
        "2",
        *wanted,
    ]


def test_the_estimate_counts_the_text_tower(scenes: Path, tmp_path: Path) -> None:
    run = RunFolder(run_of(scenes, "run"))
    assert read_json(run.classes)["names"] == list(COLOURS)
    config = RunConfig(
        data=DataConfig(data=(scenes / "zero_shot.csv",)),
        teacher=f"local-dir:{scenes / 'teacher'}",
        student="mobilenetv3_small_050",
        method="li2023-multilabel",
        student_config=StudentConfig(weights="none", image_size=64),
        training=TrainingConfig(steps=5, batch_size=4, workers=0),
    )
    said = pipeline.estimate(config, tmp_path / "new")
    assert said.training_steps == 5
    assert said.training_seconds > 0


def test_what_cannot_work_is_refused(scenes: Path, run: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "folders" / name).mkdir(parents=True)
        shutil.copy(scenes / f"train-{ord(name) % 2}.png", tmp_path / "folders" / name)
    with pytest.raises(UsageError, match="a manifest with a labels column"):
        run_of(scenes, "none", data=DataConfig(data=(tmp_path / "folders",)))
    with pytest.raises(UsageError, match="erm needs labels"):
        run_of(scenes, "none", method="erm", method_options={})
    with pytest.raises(UsageError, match="no convolutional map"):
        run_of(scenes, "none", student="test_vit", student_config=StudentConfig(weights="none"))
    with pytest.raises(UsageError, match="may hold seen and unseen ones"):
        run_of(scenes, "none", splits=SplitConfig(unseen_share=0.5))
    with pytest.raises(UsageError, match="no shot of one class"):
        run_of(scenes, "none", splits=SplitConfig(few_shot=1))
    with pytest.raises(UsageError, match="a bundle answers with one"):
        pipeline.export(run, tmp_path / "bundle", ExportConfig())
    assert not (tmp_path / "bundle").exists()
    assert not (scenes / "none" / "config.yaml").exists()


def test_images_of_a_manifest_keep_all_names_only_where_unseen_ones_are(scenes: Path) -> None:
    from attar.data.splits import make_splits

    for manifest, trained in (("zero_shot.csv", SEEN), ("all.csv", tuple(COLOURS))):
        data = DataConfig(data=(scenes / manifest,))
        table = read_image_table(data, None, scenes / "notes")
        splits = make_splits(table, SplitConfig())
        assert splits.source.train.class_names == trained
        assert splits.test_id.class_names == SEEN
        assert splits.unseen_classes.class_names == tuple(COLOURS)
        assert splits.seen_labels() == set(SEEN)
        whole = {path: i for i, path in enumerate(table.paths)}
        for part in (splits.source.train, splits.test_id, splits.unseen_classes):
            for row, path in enumerate(part.paths):
                before = {table.class_names[i] for i in table.label_sets[whole[path]]}
                assert {part.class_names[i] for i in part.label_sets[row]} == before
