"""Unseen classes from end to end: the grid, then few-shot learning from one of its runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.bench.small_classes import LR, NAMES, base_config, write_root
from tests.bench.small_grid import rows_of

from attar import pipeline
from attar.bench.class_rows import config_of, words_of
from attar.bench.classes import run_classes
from attar.bench.config import ClassesConfig, FewShotConfig
from attar.bench.few_shot import read_run, run_few_shot
from attar.data.splits import SplitConfig
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.evaluation.config import EvaluationConfig
from attar.files import read_json, write_json
from attar.methods.prompt_learning import LearntPrompts
from attar.records import read_records
from attar.run import DataConfig, RunFolder, from_options, plain_options
from attar.runtime.bundle import Bundle
from attar.stages.class_space import learnt_features
from attar.stages.comparing import Comparison, gather
from attar.stages.retrieval_config import RetrievalConfig
from attar.students.student import load_student
from attar.teachers.registry import load_teacher
from attar.teachers.text_embedding import prompt_encoder

ROWS = ("closed-set", "classification", "classification+image-contrastive+descriptions")
QUICK = EvaluationConfig(workers=0)
CONTEXT = "class_features.context"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("unseen-classes"))


@pytest.fixture(scope="module")
def grid(root: Path) -> Path:
    config = ClassesConfig(rows=ROWS, lrs=(LR,), descriptions=root / "described.json")
    return run_classes(base_config(root), config, root / "out")


def run_of(grid: Path, row: str) -> Path:
    return grid / "cells" / row / "seed0" / f"lr{LR:g}"


def test_no_image_of_an_unseen_class_is_trained_on(grid: Path) -> None:
    images = ImageTable.load(run_of(grid, "classification") / "images.parquet")
    of_split: dict[str, set[str]] = {}
    for split, label in zip(images.splits, images.labels, strict=True):
        of_split.setdefault(str(split), set()).add(images.class_names[label])
    assert len(of_split["unseen_classes"]) == 3
    assert of_split["train"] == set(NAMES) - of_split["unseen_classes"]
    assert not of_split["val"] & of_split["unseen_classes"]


def test_the_table_ranks_unseen_classes_alone_and_among_all(grid: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.md"
    first.write_text((grid / "table.md").read_text().split("\n\n")[0])
    rows = rows_of(first)
    assert rows["chance"]["unseen classes"] == "33.3"
    assert rows["chance"]["unseen classes, among all"] == "16.7"
    assert rows["closed-set"]["unseen classes"] == "–"  # it cannot even name them
    for row in ("teacher", *ROWS[1:]):
        records = read_records(grid / "results.jsonl")
        role = "teacher" if row == "teacher" else "student"
        found = [
            record.metrics["mean_per_class_recall"]
            for record in records
            if record.role == role
            and record.split == "unseen_classes"
            and record.task == "zeroshot_classification"
            and record.domain == "all"
            and record.extra["row"] == (ROWS[1] if row == "teacher" else row)
        ]
        assert rows[row]["unseen classes"] == f"{100 * found[0]:.1f}"
    coherence = (grid / "table.md").read_text().split("\n\n")[4]
    assert "M_rel" in coherence
    assert ROWS[2] in coherence
    assert "closed-set" not in coherence


def test_methods_and_variants_are_rows_beside_the_words(root: Path, tmp_path: Path) -> None:
    variants = tmp_path / "variants.yaml"
    variants.write_text("unpaired: {method: dime-fm, texts: SENTENCES, training.lr: 2e-3}\n")
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("a red thing\nsomething blue\na wall\n")
    variants.write_text(variants.read_text().replace("SENTENCES", str(sentences)))
    config = ClassesConfig(
        rows=("classification",), methods=("feature-mse", "erm"), variants=variants, lrs=(LR,)
    )
    results = run_classes(base_config(root), config, tmp_path / "out")
    tables = (results / "table.md").read_text().split("\n\n")
    (tmp_path / "first.md").write_text(tables[0])
    (tmp_path / "second.md").write_text(tables[2])
    rows = ["classification", "feature-mse", "erm", "unpaired"]
    assert list(rows_of(tmp_path / "first.md")) == ["chance", "teacher", *rows]
    assert read_json(results / "learning-rates.json")["unpaired"]["chosen"] == 2e-3

    fidelity = rows_of(tmp_path / "second.md")
    assert list(fidelity) == rows
    run = run_of(results, "feature-mse")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert fidelity["feature-mse"]["seconds"] == f"{last['time']:.0f}"
    (said,) = [
        record.metrics["agreement"]
        for record in read_records(results / "results.jsonl")
        if (record.extra["row"], record.split, record.domain, record.task)
        == ("feature-mse", "unseen_classes", "all", "fidelity")
    ]
    assert fidelity["feature-mse"]["agreement: unseen classes"] == f"{100 * said:.1f}"
    assert fidelity["erm"]["agreement: unseen classes"] == "–"  # it answers seen classes alone


def test_a_row_named_twice_is_refused(root: Path, tmp_path: Path) -> None:
    variants = tmp_path / "variants.yaml"
    variants.write_text("classification: {method: li2023}\n")
    config = ClassesConfig(rows=("classification",), variants=variants, lrs=(LR,))
    with pytest.raises(UsageError, match="named twice"):
        run_classes(base_config(root), config, tmp_path / "out")


def test_descriptions_reach_the_prompts(grid: Path) -> None:
    plain = read_json(run_of(grid, ROWS[1]) / "classes.json")["texts"]
    enriched = read_json(run_of(grid, ROWS[2]) / "classes.json")["texts"]
    assert plain[0] == ["a photo of a blue"]
    assert enriched[0] == ["a blue thing"]


def test_the_grid_goes_on_from_its_own_results_alone(
    root: Path, grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "distill", None)  # would fail when called
    config = ClassesConfig(rows=ROWS, lrs=(LR,), descriptions=root / "described.json")
    again = run_classes(base_config(root), config, root / "elsewhere", grid)
    assert again == grid
    other = replace(base_config(root), student="test_vit")
    with pytest.raises(UsageError, match="student"):
        run_classes(other, config, root / "elsewhere", grid)
    some = [name for name in NAMES if name != "red"]
    for name in some:
        shutil.copytree(root / "pictures" / name, tmp_path / "others" / name)
    data = DataConfig(data=(tmp_path / "others",))
    with pytest.raises(UsageError, match="other images"):
        run_classes(replace(base_config(root), data=data), config, root / "elsewhere", grid)
    seed1 = ClassesConfig(rows=ROWS[1:2], lrs=(LR,), seeds=(1,))
    monkeypatch.undo()
    run_classes(base_config(root), seed1, tmp_path / "seed1")
    shutil.copytree(grid / "cells", tmp_path / "seed1" / "cells", dirs_exist_ok=True)
    run_classes(base_config(root), seed1, tmp_path / "seed1")
    seeds = {r.extra["seed"] for r in read_records(tmp_path / "seed1" / "results.jsonl")}
    assert seeds == {1}  # what else lies there is no part of this grid


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("classificaton", "classification"),
        ("descriptions", "trains nothing"),
        ("closed-set+classification", "no other word"),
        ("classification+classification", "twice"),
    ],
)
def test_rows_that_mean_nothing_are_refused(row: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        words_of(row)


def test_a_row_is_a_run(root: Path) -> None:
    base = base_config(root)
    config = config_of(base, "image-contrastive+proximity+prompts", None)
    assert config.method == "li2023"
    on = {k for k, v in config.method_options.items() if v == 1.0}
    assert on == {"image_contrastive", "proximity"}
    assert config.method_options["context"] == 8
    with pytest.raises(UsageError, match="--descriptions"):
        config_of(base, "classification+descriptions", None)


def test_options_are_read_back_as_they_were_written(grid: Path) -> None:
    options = RunFolder(run_of(grid, ROWS[2])).options()
    assert plain_options(from_options(options)) == options


def test_fine_tuning_starts_from_the_run_and_keeps_what_it_was(grid: Path, tmp_path: Path) -> None:
    run = run_of(grid, ROWS[1])
    config = FewShotConfig(shots=2, seeds=(0, 1))
    out = run_few_shot(run, config, {"steps": "2"}, RetrievalConfig(), tmp_path)
    tuned = tmp_path / "finetune" / "seed0"
    assert out == tmp_path / "finetune"
    options = RunFolder(tuned).options()
    assert options["start_from"] == str(run)
    # One option given leaves the others: few-shot learning's own, then the run's.
    assert (options["training"]["sampler"], options["training"]["lr"]) == ("half-few-shot", 3e-4)
    assert options["training"]["steps"] == 2
    assert options["training"]["batch_size"] == 6
    images = ImageTable.load(tuned / "images.parquet")
    assert images.splits.count("few_shot") == 2 * 3
    records = read_records(out / "results.jsonl")
    before = {
        record.extra["few_shot_seed"]: record
        for record in records
        if record.role == "baseline"
        and record.split == "unseen_classes"
        and record.task == "zeroshot_classification"
    }
    assert set(before) == {0, 1}
    assert all(record.num_images == (10 - 2) * 3 for record in before.values())
    rows = rows_of(out / "table.md")
    assert "±" in rows["fine-tuned"]["unseen_classes"]
    assert "zero-shot, before" in rows


@pytest.mark.parametrize("keys", ["student", "teacher"])
def test_retrieval_needs_no_training(grid: Path, tmp_path: Path, keys: str) -> None:
    run = run_of(grid, ROWS[1])
    config = FewShotConfig(how="retrieval", shots=3)
    asked = RetrievalConfig(keys=keys, views=2)
    out = run_few_shot(run, config, {}, asked, tmp_path)
    rows = rows_of(out / "table.md")
    assert set(rows) == {"zero-shot", f"retrieval, keys of the {keys}"}
    assert not (tmp_path / "retrieval" / "by-name" / "student").exists()


def test_further_classes_stay_unseen(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fewer than two"):
        # Half of three classes cannot be two and two.
        run_few_shot(
            run_of(grid, ROWS[1]),
            FewShotConfig(shots=1, share=0.5),
            {"steps": 1},
            RetrievalConfig(),
            tmp_path,
        )


def test_only_a_finished_run_with_unseen_classes_can_learn_more(
    root: Path, grid: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        read_run(tmp_path)
    config = replace(base_config(root), splits=SplitConfig(), method="feature-mse")
    run = pipeline.distill(config, tmp_path / "all-seen", estimated=False)
    with pytest.raises(UsageError, match="all of its classes"):
        run_few_shot(run, FewShotConfig(), {}, RetrievalConfig(), tmp_path / "few-shot")


def test_prompts_are_learnt_saved_measured_and_exported(root: Path, tmp_path: Path) -> None:
    config = replace(
        base_config(root),
        method="li2023",
        method_options={"context": 2, "image_contrastive": 0.0},
        evaluation=EvaluationConfig(workers=0),
    )
    run = pipeline.distill(config, tmp_path / "prompts", estimated=False)
    learnt = learnt_features(run, NAMES)
    assert learnt is not None
    plain = read_json(run / "classes.json")
    assert plain["names"] == list(NAMES)
    (run / "done").unlink()  # as if it had been killed after the training
    (run / "class_features.safetensors").unlink()
    pipeline.distill(config, run, estimated=False)
    again = learnt_features(run, NAMES)
    assert again is not None
    np.testing.assert_allclose(again.numpy(), learnt.numpy(), atol=1e-6)
    request = gather(Comparison(run=run, data=config.data, out=tmp_path / "compared", config=QUICK))
    own = {model.role: model.class_features for model in request.models}
    assert own["teacher"] is None
    wanted = learnt_features(run, request.images.class_names)
    assert wanted is not None
    np.testing.assert_allclose(own["student"], wanted.numpy(), atol=1e-6)
    bundle = Bundle.open(pipeline.export(run, tmp_path / "bundle"))
    np.testing.assert_allclose(bundle.labels.features, learnt.numpy(), atol=1e-6)
    with pytest.raises(UsageError, match="--teacher"):
        pipeline.distill(
            replace(config, teacher=None, store=run / "store"), tmp_path / "again", estimated=False
        )


def test_learnt_prompts_stand_before_name_and_sentence(root: Path, tmp_path: Path) -> None:
    official = {name: [f"a photo of {name} . A {name} thing."] for name in NAMES}
    write_json(tmp_path / "official.json", official)
    write_json(tmp_path / "own.json", {name: [f"A {name} thing."] for name in NAMES})
    base = base_config(root)
    config = replace(
        base,
        data=replace(base.data, classes=tmp_path / "official.json"),
        method="li2023",
        method_options={"context": 2},
    )
    run = pipeline.distill(config, tmp_path / "run", estimated=False)
    assert read_json(run / "classes.json")["texts"][0] == ["a photo of blue . A blue thing."]
    prompts = LearntPrompts(
        prompt_encoder(load_teacher(str(config.teacher))),
        [f"{name} . A {name} thing." for name in NAMES],
        length=2,
    )
    prompts.load_state_dict({"context": load_file(run / "objective.safetensors")[CONTEXT]})
    expected = prompts().detach()
    learnt = learnt_features(run, NAMES)
    assert learnt is not None
    torch.testing.assert_close(learnt, expected, rtol=0, atol=1e-6)
    exported = pipeline.export(run, tmp_path / "bundle", classes=tmp_path / "own.json")
    features = Bundle.open(exported).labels.features
    np.testing.assert_allclose(features, expected.numpy(), rtol=0, atol=1e-6)


def test_results_are_averaged_over_the_last_epochs(root: Path, tmp_path: Path) -> None:
    config = replace(
        base_config(root),
        method="li2023",
        training=replace(base_config(root).training, steps=None, epochs=3, snapshots=2),
    )
    run = pipeline.distill(config, tmp_path / "run", estimated=False)
    kept = sorted(path.name for path in (run / "snapshots").iterdir())
    train = ImageTable.load(run / "images.parquet").splits.count("train")
    epoch = -(-train // 6)
    total = -(-3 * train // 6)
    assert kept == [f"{total - epoch:08d}", f"{total:08d}"]
    means = {
        (r.task, r.split, r.domain): r
        for r in read_records(run / "results.jsonl")
        if r.role == "student, mean of the last epochs"
    }
    record = means["zeroshot_classification", "unseen_classes", "all"]
    alone = [
        r.metrics["acc1"]
        for name in kept
        for r in read_records(run / "evaluations" / "snapshots" / name / "results.jsonl")
        if (r.role, r.task, r.split) == ("student", record.task, record.split)
    ]
    assert len(alone) == record.extra["students"] == 2
    assert record.metrics["acc1"] == pytest.approx(np.mean(alone))


def test_a_grid_without_validation_images_takes_one_rate_untried(
    root: Path, tmp_path: Path
) -> None:
    lines = ["path,label,split"]
    for path in sorted((root / "pictures").glob("*/*.png")):
        unseen = path.parent.name in ("pink", "red", "yellow")
        split = "unseen_classes" if unseen else "test_id" if path.stem in "89" else "train"
        lines.append(f"{path},{path.parent.name},{split}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    base = replace(
        base_config(root),
        data=DataConfig(data=(tmp_path / "list.csv",)),
        splits=SplitConfig(),
    )
    rows = ("classification", "closed-set")
    with pytest.raises(UsageError, match="one --lrs"):
        run_classes(base, ClassesConfig(rows=rows), tmp_path / "three")
    out = run_classes(base, ClassesConfig(rows=rows, lrs=(LR,)), tmp_path / "one")
    assert read_json(out / "learning-rates.json")["closed-set"]["chosen"] == LR


def test_the_closed_set_learns_new_classes_from_a_few_images(grid: Path, tmp_path: Path) -> None:
    run, config = run_of(grid, "closed-set"), FewShotConfig(shots=2)
    out = run_few_shot(run, config, {"steps": 1}, RetrievalConfig(), tmp_path)
    rows = rows_of(out / "table.md")
    assert rows["fine-tuned"]["unseen_classes"].endswith("(3 classes)")
    assert rows["fine-tuned"]["test_id"].endswith("(3 classes)")
    assert not rows.get("zero-shot, before", {}).get("unseen_classes", "–")[0].isdigit()


def test_a_projection_is_fitted_at_the_start_and_not_again(grid: Path, tmp_path: Path) -> None:
    run = run_of(grid, ROWS[1])
    config = replace(read_run(run), start_from=run, references=False)
    fitted = replace(
        config,
        student_config=replace(config.student_config, projection="fitted"),
        training=replace(config.training, lr=1e-12, weight_decay=0.0),
    )
    again = pipeline.distill(fitted, tmp_path / "again", estimated=False)
    before, after = (load_student(path).projection().weight for path in (run, again))
    np.testing.assert_allclose(after.detach().numpy(), before.detach().numpy(), atol=1e-6)
