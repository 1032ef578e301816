"""Several labels an image: the rows of Li et al.'s table 12 on composed scenes, resumable.

    python scripts/scenes_table.py --out runs/scenes --results docs/results/several-labels

Composes the scenes (make_scenes.py) and trains four rows, each zero-shot and then few-shot from
where zero-shot ended: a closed-set classifier; positive and negative prompts with the
classification term alone; with image contrast; with the concepts' Unicode keywords too. Writes one
small file a cell to RESULTS/cells and makes RESULTS/table.md again after each. A cell whose file is
there is never run again, so a killed call given again goes on where it stopped.
"""

import argparse
import csv
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from attar import pipeline
from attar.bench.cells import load_cell, save_cell, what_was_run
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.multilabel import label_metrics
from attar.files import write_text
from attar.records import Record, read_records
from attar.run import DataConfig, RunConfig
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig

ROWS: Mapping[str, float | None] = {
    "closed-set": None,
    "classification": 0.0,
    "+ image contrastive": 1.0,
    "+ descriptions": 1.0,
}
"""Row -> weight of the image contrast; None: a plain classifier."""
STAGES = ("zero-shot", "few-shot")
SIZES = ("train", "few_shot", "test", "concepts", "size", "seed")
"""Options that make_scenes.py takes as they are."""
COLUMNS = {
    ("test_id", "seen"): "X_id",
    ("unseen_classes", "seen"): "Y_id on X_ood",
    ("unseen_classes", "unseen"): "Y_ood on X_ood",
}
METRICS = {
    "m1": "Overall accuracy, M1 (eq. 9)",
    "f1_paper": "F1 as printed (eq. 10)",
    "macro_f1": "Ordinary macro-F1 (not in the paper)",
}
PAPER: Mapping[str, Mapping[str, tuple[str, str, str]]] = {
    "m1": {
        "closed-set": ("96.4 / 96.5", "– / 86.2", "– / 87.7"),
        "classification": ("96.9 / 97.2", "79.3 / 85.3", "71.7 / 87.3"),
        "+ image contrastive": ("99.2 / 99.2", "84.0 / 91.9", "76.3 / 88.3"),
        "+ descriptions": ("98.2 / 99.0", "84.3 / 92.0", "83.0 / 89.6"),
    },
    "f1_paper": {
        "closed-set": ("91.6 / 91.9", "– / 57.8", "– / 35.9"),
        "classification": ("94.0 / 94.4", "46.5 / 54.7", "23.3 / 32.8"),
        "+ image contrastive": ("98.1 / 98.0", "55.3 / 70.8", "23.7 / 47.3"),
        "+ descriptions": ("97.2 / 97.4", "55.6 / 70.8", "11.7 / 50.7"),
    },
}
"""Table 12: zero-shot / few-shot in each of the columns."""
NOTHING, EVERYTHING = "no label at all", "every label"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table under way."""

    options: argparse.Namespace

    @property
    def scenes(self) -> Path:
        """Where the scenes are."""
        return Path(self.options.scenes or self.options.out / "scenes")

    @property
    def results(self) -> Path:
        """Where cells and table go."""
        return Path(self.options.results or self.options.out)

    def run(self, row: str, stage: str) -> Path:
        """Return the run folder of a cell."""
        return Path(self.options.out / "runs" / name_of(row) / stage)

    def file(self, row: str, stage: str) -> Path:
        """Return the results file of a cell."""
        return self.results / "cells" / name_of(row) / f"{stage}.json"


def name_of(row: str) -> str:
    return row.removeprefix("+ ").replace(" ", "-")


def compose(grid: Grid) -> None:
    """Compose the scenes where they are not there yet."""
    if (grid.scenes / "descriptions.json").is_file():
        return
    script = Path(__file__).with_name("make_scenes.py")
    given = {f"--{name.replace('_', '-')}": getattr(grid.options, name) for name in SIZES}
    words = [str(word) for pair in given.items() for word in pair]
    subprocess.run([sys.executable, script, "--out", grid.scenes, *words], check=True)


def config_of(grid: Grid, row: str, stage: str) -> RunConfig:
    """Return the run of a cell."""
    asked, contrast = grid.options, ROWS[row]
    zero_shot = stage == "zero-shot"
    training = TrainingConfig(
        steps=asked.steps if zero_shot else asked.few_shot_steps,
        batch_size=asked.batch_size,
        lr=asked.lr if zero_shot else asked.few_shot_lr,
        schedule="cosine" if zero_shot else "one-cycle",
        sampler="uniform" if zero_shot else "half-few-shot",
        # Cut or recoloured, a picture might no longer show its label.
        augmentation="none",
        precision="fp32",
        workers=asked.workers,
        seed=asked.seed,
    )
    described = row == "+ descriptions"
    data = DataConfig(
        data=(grid.scenes / ("zero_shot.csv" if zero_shot else "manifest.csv"),),
        classes=grid.scenes / "descriptions.json" if described else None,
    )
    config = RunConfig(
        data=data,
        teacher=asked.teacher,
        student=asked.student,
        store=asked.out / "store",
        method="li2023-multilabel",
        method_options={"image_contrastive": contrast},
        student_config=StudentConfig(image_size=asked.image_size, weights=asked.weights),
        training=training,
        embed=EmbedConfig(workers=asked.workers),
        evaluation=EvaluationConfig(workers=asked.workers),
        start_from=None if zero_shot else grid.run(row, "zero-shot"),
    )
    if contrast is None:
        plain = {"method": "closed-set-multilabel", "method_options": {}}
        config = replace(config, **plain, teacher=None, store=None)
    return config


def said_of(grid: Grid, config: RunConfig) -> dict[str, Any]:
    """Return what decides a cell's result, without places."""
    options = {k: v for k, v in what_was_run(config).items() if k != "start_from"}
    return {**options, "scenes": {name: getattr(grid.options, name) for name in SIZES}}


def run_cell(grid: Grid, row: str, stage: str) -> None:
    """Run a cell whose results are not there; few-shot goes on from the zero-shot run."""
    config, file = config_of(grid, row, stage), grid.file(row, stage)
    said = said_of(grid, config)
    if load_cell(file, said) is not None:
        return
    if config.start_from is not None:
        pipeline.distill(config_of(grid, row, "zero-shot"), config.start_from, estimated=False)
    run = pipeline.distill(config, grid.run(row, stage), estimated=False)
    records = [r for r in read_records(run / "results.jsonl") if r.role == "student"]
    save_cell(file, said, records, {"row": row, "stage": stage})
    logging.getLogger("attar").info("cell %s, %s is done", row, stage)


def constants(grid: Grid) -> dict[tuple[str, str, str, str], float]:
    """Return what answers that look at no image get: (row, metric, split, labels) -> value."""
    with (grid.scenes / "manifest.csv").open(encoding="utf-8") as file:
        lines = [(set(line["labels"].split("|")), line["split"]) for line in csv.DictReader(file)]
    found = {}
    for split, group in COLUMNS:
        names = (grid.scenes / f"{group}.txt").read_text(encoding="utf-8").splitlines()
        truth = np.array([[name in of for name in names] for of, where in lines if where == split])
        for row, answer in ((NOTHING, False), (EVERYTHING, True)):
            values = label_metrics(np.full_like(truth, answer), truth)
            found |= {(row, metric, split, group): values[metric] for metric in METRICS}
    return found


def tabulate(grid: Grid) -> str:
    """Write table.md from the finished cells and return it."""
    found: dict[tuple[str, str, str, str, str], float] = {}
    for row in ROWS:
        for stage in STAGES:
            records: Sequence[Record] = load_cell(grid.file(row, stage)) or ()
            for record in records:
                for metric, value in record.metrics.items():
                    group = str(record.extra["labels"])
                    found[row, stage, metric, record.split, group] = value
    blind = constants(grid)
    head = ["", *(f"{name}{who}" for name in COLUMNS.values() for who in ("", ", paper"))]
    parts = []
    for metric, title in METRICS.items():
        lines = [[f"**{title}**" if not head[0] else "", *head[1:]], ["---"] + ["---:"] * 6]
        for row in (NOTHING, EVERYTHING):
            values = (f"{100 * blind[row, metric, *column]:.1f}" for column in COLUMNS)
            lines.append([f"*{row}*", *(text for value in values for text in (value, ""))])
        for row in ROWS:
            cells = [row]
            for number, column in enumerate(COLUMNS):
                ours = [percent(found.get((row, stage, metric, *column))) for stage in STAGES]
                paper = PAPER.get(metric, {}).get(row, ("", "", ""))[number]
                cells += [" / ".join(ours), paper]
            lines.append(cells)
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    text = "\n\n".join([*parts, note(grid)]) + "\n"
    write_text(grid.results / "table.md", text)
    return text


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def note(grid: Grid) -> str:
    asked = grid.options
    return (
        "Zero-shot / few-shot, in %; a label is given when its probability is above one half. "
        f"Ours: {asked.train:,} training scenes, {asked.few_shot} few-shot ones, {asked.test} of "
        f"each test, {asked.concepts} emoji concepts, half of them seen; student {asked.student} "
        f"at {asked.image_size} px, teacher {asked.teacher}, {asked.steps} steps of "
        f"{asked.batch_size} and {asked.few_shot_steps} few-shot ones, one seed ({asked.seed}). "
        "Paper: table 12, a robot's view of 26 objects, another student and teacher. The rows in "
        "italics look at no image."
    )


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="runs, store and scenes")
    parser.add_argument("--results", type=Path, help="cells and table.md; OUT by default")
    parser.add_argument("--scenes", type=Path, help="made by make_scenes.py; OUT/scenes by default")
    parser.add_argument("--teacher", default="pocket")
    parser.add_argument("--student", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--few-shot-steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--few-shot-lr", type=float, default=3e-4, help="peak of one cycle")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--few-shot", type=int, default=50)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--concepts", type=int, default=26)
    parser.add_argument("--size", type=int, default=128, help="side of a scene in pixels")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    grid = Grid(options=read_options(words))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    compose(grid)
    for row in ROWS:
        for stage in STAGES:
            run_cell(grid, row, stage)
            text = tabulate(grid)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
