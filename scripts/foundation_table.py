"""A student of unpaired images and sentences: the arms of DIME-FM's loss on one page, resumable.

    python scripts/foundation_table.py --pacs PACS --imagenet-sample SAMPLE \\
        --sentences flickr8k-captions.txt --out runs/foundation \\
        --results docs/results/unpaired-foundation

Images, without labels: the ImageNet sample, the PACS domains but sketch (odd parity, which the
pocket teacher never saw) and the three emoji families that students train on. Sentences, paired
with nothing: A, the file; B, the file and the prompts of the classes that are asked about later.
Then sketch and the fourth emoji family, Noto, are asked about: zero-shot, and by a linear probe on
the student's features. Writes one file a cell to RESULTS/cells and makes RESULTS/table.md again
after each. A cell whose file is there is never run again; a killed call goes on where it stopped.
"""

import argparse
import csv
import hashlib
import logging
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attar import pipeline
from attar.bench.cells import load_cell, save_cell, what_was_run
from attar.bench.markdown import NOTHING, markdown, mean_text, write_results
from attar.data.emoji import HELD_OUT_FAMILY, TRAINING_FAMILIES, emoji_concepts, extract_emoji
from attar.data.images import is_image_name
from attar.data.splits import SplitConfig
from attar.evaluation.config import EvaluationConfig
from attar.evaluation.linear_probe_config import LinearProbeConfig
from attar.evaluation.zero_shot import TASK as ZERO_SHOT
from attar.files import atomic_path, write_text
from attar.records import Record
from attar.run import DataConfig, RunConfig
from attar.stages.comparing import Comparison
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig
from attar.suites.config import SuiteConfig
from attar.suites.registry import find_suite
from attar.suites.request import SuiteRequest
from attar.training.config import TrainingConfig

DOMAINS = ("art_painting", "cartoon", "photo")
UNSEEN = "sketch"
TESTS = (UNSEEN, HELD_OUT_FAMILY)
TEACHERS = "teachers.json"
COLUMNS = {(test, kind): f"{test}, {kind}" for test in TESTS for kind in ("zero-shot", "probe")}
log = logging.getLogger("attar")

ARMS: Mapping[str, tuple[tuple[float, float, float], bool]] = {
    "(.7, .3, 0), A": ((0.7, 0.3, 0.0), False),
    "(.7, .3, 0), B": ((0.7, 0.3, 0.0), True),
    "(1, 0, 0), A": ((1.0, 0.0, 0.0), False),
    "(0, 1, 0)": ((0.0, 1.0, 0.0), False),
    "(.7, .3, .1), A": ((0.7, 0.3, 0.1), False),
    "feature-mse": ((0.0, 0.0, 0.0), False),
}
"""Arm -> weights of L_vl, L_pvl and L_udist, and whether class prompts are among the sentences."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table under way."""

    options: argparse.Namespace

    @property
    def out(self) -> Path:
        """Where data, store and runs are."""
        return Path(self.options.out)

    @property
    def results(self) -> Path:
        """Where cells and table go."""
        return Path(self.options.results or self.options.out)

    @property
    def store(self) -> Path:
        """The teacher's embeddings."""
        return Path(self.options.store or self.out / "store")

    def cell(self, arm: str, seed: int) -> str:
        """Return a cell's place below a folder."""
        word = arm.translate(str.maketrans({"(": "", ")": "", ",": "", " ": "-", ".": "0."}))
        return f"{word}/seed{seed}"


def compose(grid: Grid) -> None:
    """Write the manifests of training and test images and the list of all classes."""
    asked, folder = grid.options, grid.options.out / "data"
    emoji = extract_emoji(folder / "emoji")
    images = [(path, "photo") for path in pictures(asked.imagenet_sample)]
    for domain in DOMAINS:
        images += [(path, domain) for path in odd_pictures(asked.pacs, domain)]
    drawn = {name: pictures(emoji / name) for name in (*TRAINING_FAMILIES, HELD_OUT_FAMILY)}
    for family in TRAINING_FAMILIES:
        images += [(path, family) for path in drawn[family]]
    write_manifest(folder / "images.csv", ("domain",), images)
    # Half of the sketches teach the probe, the others test; Noto's probe learns from the families.
    sketches = [
        (path, path.parent.name, ("train", "test_ood")[number % 2])
        for number, path in enumerate(odd_pictures(asked.pacs, UNSEEN))
    ]
    emojis = [
        (path, path.parent.name, "test_ood" if family == HELD_OUT_FAMILY else "train")
        for family, paths in drawn.items()
        for path in paths
    ]
    write_manifest(folder / f"{UNSEEN}.csv", ("label", "split"), sketches)
    write_manifest(folder / f"{HELD_OUT_FAMILY}.csv", ("label", "split"), emojis)
    pacs = sorted({label for _, label, _ in sketches})
    names = [*pacs, *(c.name for c in emoji_concepts() if c.name not in pacs)]
    write_text(folder / "classes.txt", "\n".join(names) + "\n")
    tests = DataConfig(data=tuple(folder / f"{test}.csv" for test in TESTS))
    pipeline.embed(tests, asked.teacher, grid.store, EmbedConfig(workers=asked.workers))


def pictures(folder: Path) -> list[Path]:
    """Return the images below a folder in the order of their names."""
    return [path for path in sorted(folder.rglob("*")) if is_image_name(path.name)]


def odd_pictures(pacs: Path, domain: str) -> list[Path]:
    """Return a PACS domain's images whose name's sha256 is odd, as `--subset odd` does."""
    return [
        path
        for path in pictures(pacs / domain)
        if hashlib.sha256(path.relative_to(pacs).as_posix().encode()).digest()[-1] & 1
    ]


def write_manifest(path: Path, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Write a row an image: its path, then what the columns say of it."""
    lines = [("path", *columns), *((str(file.resolve()), *said) for file, *said in rows)]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)


def config_of(grid: Grid, arm: str, seed: int) -> RunConfig:
    """Return the run of a cell."""
    asked, (weights, prompts) = grid.options, ARMS[arm]
    folder = asked.out / "data"
    config = RunConfig(
        data=DataConfig(data=(folder / "images.csv",), classes=folder / "classes.txt"),
        teacher=asked.teacher,
        student=asked.student,
        store=grid.store,
        method="dime-fm",
        texts=asked.sentences,
        splits=SplitConfig(val_fraction=0.02, test_fraction=0.0, seed=seed),
        # As DIME-FM has it, for every arm: the whole image, and a projection without bias.
        student_config=StudentConfig(
            image_size=asked.image_size,
            weights=asked.weights,
            crop_pct=1.0,
            projection_bias=False,
        ),
        training=TrainingConfig(
            steps=asked.steps,
            batch_size=asked.batch_size,
            lr=asked.lr,
            precision="fp32",
            workers=asked.workers,
            seed=seed,
        ),
        embed=EmbedConfig(workers=asked.workers),
        evaluation=EvaluationConfig(workers=asked.workers),
        references=False,
    )
    if arm == "feature-mse":
        return replace(config, method="feature-mse", texts=None)
    names = ("vl_weight", "pvl_weight", "udist_weight")
    options = {**dict(zip(names, weights, strict=True)), "class_prompts": prompts}
    return replace(config, method_options=options)


def said_of(grid: Grid, config: RunConfig) -> dict[str, Any]:
    """Return what decides a cell's result, without places."""
    options = {k: v for k, v in what_was_run(config).items() if k != "texts"}
    return {**options, "sentences": grid.options.sentences.name}


def run_cell(grid: Grid, arm: str, seed: int) -> None:
    """Train and measure a cell whose results are not there."""
    config, name = config_of(grid, arm, seed), grid.cell(arm, seed)
    file, said = grid.results / "cells" / f"{name}.json", said_of(grid, config)
    if load_cell(file, said) is not None:
        return
    run = pipeline.distill(config, grid.out / "runs" / name, estimated=False)
    records = [r for r in measure(grid, run) if r.role == "student"]
    save_cell(file, said, records, {"arm": arm, "seed": seed})
    log.info("cell %s is done", name)


def measure_teachers(grid: Grid) -> None:
    """Measure the teacher, and the one that never saw a sketch, beside the first run there is."""
    file = grid.results / "cells" / TEACHERS
    runs = sorted((grid.out / "runs").glob("*/seed*/done"))
    if load_cell(file) is None and runs:
        strict = grid.options.strict_teacher
        found = measure(grid, runs[0].parent, *([strict] if strict else []))
        said = {"teacher": grid.options.teacher, "strict_teacher": strict}
        save_cell(file, said, [r for r in found if r.role != "student"], {})


def measure(grid: Grid, run: Path, *others: str) -> list[Record]:
    """Return zero-shot and linear-probe results of a run's student, its teacher and others."""
    found: list[Record] = []
    for test in TESTS:
        comparison = Comparison(
            run=run,
            data=DataConfig(data=(grid.out / "data" / f"{test}.csv",)),
            teacher=grid.options.teacher,
            others=others,
            out=run / "evaluations" / test,
            config=EvaluationConfig(workers=grid.options.workers),
        )
        request = SuiteRequest(
            comparison=comparison,
            options=SuiteConfig(suite="linear-probe"),
            probe=LinearProbeConfig(shots=(), seeds=(0,)),
        )
        measured = [
            record for of_model in find_suite("linear-probe")(request) for record in of_model
        ]
        found += [replace(r, domain=test) for r in measured if r.domain == "all"]
    return found


def tabulate(grid: Grid) -> str:
    """Write table.md and results.jsonl from the finished cells and return the table."""
    records = [r for path in sorted(grid.results.glob("cells/*/*.json")) for r in cell_of(path)]
    records += cell_of(grid.results / "cells" / TEACHERS)
    rows = dict.fromkeys(r.role for r in records if r.role != "student")
    body = [[row_name(row), *columns([r for r in records if r.role == row])] for row in rows]
    of_arms = {arm: [r for r in records if r.extra.get("arm") == arm] for arm in ARMS}
    body += [[arm, *columns(found)] for arm, found in of_arms.items() if found]
    chances = {r.domain: r.extra["num_classes"] for r in records if "acc1" in r.metrics}
    chance = [f"{100 / chances[test]:.1f}" if test in chances else NOTHING for test, _ in COLUMNS]
    table = markdown(["", *COLUMNS.values(), "seeds"], [["*chance*", *chance, NOTHING], *body])
    write_results(records, grid.results, f"{table}\n\n{note(grid)}\n")
    return (grid.results / "table.md").read_text(encoding="utf-8")


def cell_of(path: Path) -> Sequence[Record]:
    return load_cell(path) or ()


def row_name(role: str) -> str:
    return "teacher" if role == "teacher" else f"teacher `{role}`"


def columns(records: Sequence[Record]) -> list[str]:
    """Return accuracy in % for each column, with its deviation over seeds, and those seeds."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        if "acc1" in record.metrics:
            kind = "zero-shot" if record.task == ZERO_SHOT else "probe"
            found[record.domain, kind].append(100 * record.metrics["acc1"])
    seeds = sorted({record.extra["seed"] for record in records if "seed" in record.extra})
    said = ", ".join(map(str, seeds)) or NOTHING
    return [*(mean_text(found[column]) for column in COLUMNS), said]


def note(grid: Grid) -> str:
    asked = grid.options
    return (
        f"Top-1 accuracy in %. Student {asked.student} at {asked.image_size} px, teacher "
        f"{asked.teacher}, {asked.steps} steps of {asked.batch_size} images, lr {asked.lr:g}. "
        "Weights (w_vl, w_pvl, w_udist); A: the sentences; B: A and the prompts of every class "
        "that is asked about, so the names of the evaluated classes are in training. Sketch: half "
        "of the pictures teach the probe, the others are tested. Noto: the probe learns from the "
        "three other families."
    )


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pacs", type=Path, required=True, help="PACS, domain/class/image")
    parser.add_argument("--imagenet-sample", type=Path, required=True, help="folder of photos")
    parser.add_argument("--sentences", type=Path, required=True, help="one sentence a line")
    parser.add_argument("--out", type=Path, required=True, help="data, store and runs")
    parser.add_argument("--store", type=Path, help="embeddings to use and fill; OUT/store")
    parser.add_argument("--results", type=Path, help="cells and table.md; OUT by default")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--teacher", default="pocket")
    parser.add_argument("--strict-teacher", help="one that never saw a sketch, shown beside")
    parser.add_argument("--student", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=8e-4, help="the paper's peak")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    grid = Grid(options=read_options(words))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    compose(grid)
    for seed in grid.options.seeds:
        for arm in grid.options.arms:
            run_cell(grid, arm, seed)
            tabulate(grid)
    measure_teachers(grid)
    sys.stdout.write(tabulate(grid))


if __name__ == "__main__":
    main()
