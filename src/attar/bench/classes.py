"""Unseen classes: the rows of Li et al.'s tables × seeds, each cell a run folder.

1. For each row with several learning rates, every one is tried on the first seed; the one with the
   best accuracy on validation images of *seen* classes is kept for all seeds.
2. Every other cell is run with its row's rate.
3. Whenever a cell has ended, the table is made again from all the cells' results.

A cell whose results are there is never run again, so the grid goes on where it was killed. A cell
that fails stops no other; the grid then ends in an error that names it. Cells side by side share
the machine, and so their seconds of training are more than those of a cell alone.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attar.bench.cells import digest_of, what_was_run
from attar.bench.class_rows import DESCRIPTIONS, config_of
from attar.bench.class_table import write_class_tables
from attar.bench.config import ClassesConfig
from attar.bench.kept import Kept, Planned
from attar.bench.progress import Progress
from attar.bench.rows import Row, in_grid, method_rows, variant_rows
from attar.bench.running import Running
from attar.data.classes import read_class_list
from attar.data.emoji import HELD_OUT_FAMILY, emoji_concepts, extract_emoji
from attar.data.split_names import TRAINVAL
from attar.data.splits import SplitConfig
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.files import sha256_file, write_json
from attar.records import Record
from attar.run import DataConfig, RunConfig
from attar.stages.images import read_image_table
from attar.stages.request import check_names

log = logging.getLogger(__name__)

TASKS = ("zero_shot", "fidelity", "coherence")


@dataclass(frozen=True, kw_only=True)
class ClassCell:
    """One run of the grid."""

    row: str
    seed: int
    lr: float

    @property
    def name(self) -> str:
        """The cell's place below the grid's folder."""
        return f"{self.row}/seed{self.seed}/lr{self.lr:g}"


@dataclass(frozen=True, kw_only=True)
class ClassGrid:
    """A grid under way."""

    base: RunConfig
    rows: Mapping[str, Row]
    config: ClassesConfig
    kept: Kept


def run_classes(
    base: RunConfig, config: ClassesConfig, out: Path, results: Path | None = None
) -> Path:
    """Run the grid and return the folder of its results (`out` by default).

    `base` is what all cells share; method, its options, seed and learning rate are set here.

    Raises:
        UsageError: an unknown row, student or teacher, data without unseen classes, or results
            that were made with another configuration.
        AttarError: a cell failed; what does not depend on it is done.
    """
    grid = _open(base, config, out, results or out)
    kept = grid.kept
    trials = {row: _trials(grid, row) for row in grid.rows}
    for cells in trials.values():
        for cell in cells:  # refuses strange results before anything is run
            kept.load(_planned(grid, cell))
    tried = [cell for cells in trials.values() if len(cells) > 1 for cell in cells]
    kept.run([_planned(grid, cell) for cell in tried], after=lambda: None)
    chosen = {
        row: _choose_lr(grid, cells)
        for row, cells in trials.items()
        if not any(cell.name in kept.running.failed for cell in cells)
    }
    if chosen:
        _tabulate(grid, chosen)  # also when nothing is missing
    planned = [_planned(grid, cell) for cell in _cells(grid, chosen)]
    kept.run(planned, after=lambda: _tabulate(grid, chosen))
    kept.running.refuse_failures()
    return kept.results


def _open(base: RunConfig, config: ClassesConfig, out: Path, results: Path) -> ClassGrid:
    """Check and read everything; run nothing."""
    unseen = base.splits.unseen_share or base.splits.unseen_classes
    is_manifest = all(path.is_file() for path in base.data.data)
    if not unseen and not is_manifest:
        raise UsageError(
            "there are no unseen classes: give --splits.unseen-share 0.5, --splits.unseen-classes "
            "FILE, or a manifest whose split column names unseen_classes"
        )
    base = replace(base, evaluation=replace(base.evaluation, tasks=TASKS))
    rows = _rows(base, config, out)
    classes = read_class_list(base.data.classes) if base.data.classes else None
    table = read_image_table(base.data, classes, out)
    chooses = any(len(row.lrs) > 1 for row in rows.values())
    if chooses and (not base.splits.val_fraction or _divided_without_val(table)):
        raise UsageError(
            "learning rates are chosen on validation images and there are none: give one --lrs, or "
            "name images for the split val"
        )
    # One that is tried with several rates on the first seed is among the cells of its row.
    progress = Progress(sum(len(row.lrs) + len(config.seeds) - 1 for row in rows.values()))
    return ClassGrid(
        base=base,
        rows=rows,
        config=config,
        kept=Kept(
            out=out,
            results=results,
            images=table,
            digest=digest_of(table, base.splits.unseen_classes),
            command="attar bench classes",
            running=Running(jobs=config.jobs, progress=progress),
            facts_of=lambda run: {"training_seconds": _training_seconds(run)},
        ),
    )


def emoji_data(out: Path, splits: SplitConfig) -> tuple[DataConfig, SplitConfig, Path]:
    """Write the shipped emoji and their keywords; return how the grid uses them.

    Half of the concepts are unseen, where `splits` do not say otherwise, and Noto's drawings of all
    of them: an unseen concept in Noto is unseen twice.

    Returns:
        The images, the splits, and the class list with the Unicode keywords as descriptions.
    """
    images = extract_emoji(out / "emoji")
    # With the prompt in front, so that every class has it, also where a keyword names the class.
    described = {
        concept.name: [f"a photo of a {concept.name}. Keywords: {', '.join(concept.keywords)}."]
        for concept in emoji_concepts()
    }
    descriptions = out / "keywords.json"
    write_json(descriptions, described)
    splits = replace(splits, held_out_domain=splits.held_out_domain or HELD_OUT_FAMILY)
    if not splits.unseen_share and splits.unseen_classes is None:
        splits = replace(splits, unseen_share=0.5)
    return DataConfig(data=(images,)), splits, descriptions


def _rows(base: RunConfig, config: ClassesConfig, out: Path) -> dict[str, Row]:
    """Return the rows that words make, then methods as they come, then variants."""
    shared = replace(base, store=base.store or out / "store", references=False)
    worded = [
        Row(name=name, config=config_of(shared, name, config.descriptions), lrs=config.lrs)
        for name in config.rows
    ]
    further = [
        *method_rows(base, config.methods, config.lrs),
        *variant_rows(base, config.variants, config.lrs),
    ]
    rows = [*worded, *(in_grid(row, base, out) for row in further)]
    for row in rows:
        check_names(row.config)
    if len({row.name for row in rows}) < len(rows):
        raise UsageError("a row is named twice among --rows, --methods and --variants")
    return {row.name: row for row in rows}


def _trials(grid: ClassGrid, row: str) -> list[ClassCell]:
    seed = grid.config.seeds[0]
    return [ClassCell(row=row, seed=seed, lr=lr) for lr in grid.rows[row].lrs]


def _cells(grid: ClassGrid, chosen: Mapping[str, float]) -> list[ClassCell]:
    """Return the cells of all numbers in the table, in the order they are run."""
    return [
        ClassCell(row=row, seed=seed, lr=lr)
        for seed in grid.config.seeds
        for row, lr in chosen.items()
    ]


def _planned(grid: ClassGrid, cell: ClassCell) -> Planned:
    own = grid.rows[cell.row].config
    config = replace(
        own,
        splits=replace(own.splits, seed=cell.seed),
        training=replace(own.training, lr=cell.lr, seed=cell.seed),
    )
    said = _what_was_run(grid, config, cell.row)
    return Planned(name=cell.name, config=config, said=said, facts=asdict(cell))


def _what_was_run(grid: ClassGrid, config: RunConfig, row: str) -> dict[str, Any]:
    """Return a cell's options; descriptions count by what they say, not by where they are."""
    said = what_was_run(config, grid.kept.images)
    classes = config.data.classes
    if DESCRIPTIONS in row and classes is not None and classes.is_file():
        said[DESCRIPTIONS] = sha256_file(classes)
    return said


def _choose_lr(grid: ClassGrid, trials: Sequence[ClassCell]) -> float:
    """Keep the learning rate that is best on seen classes' validation; a single one is untried."""
    row, scores = trials[0].row, dict[float, float]()
    for cell in trials if len(trials) > 1 else ():
        scores[cell.lr] = grid.kept.score(_planned(grid, cell))
        log.info("%s, lr %g: %.4f on validation of seen classes", row, cell.lr, scores[cell.lr])
    chosen = max(scores, key=lambda lr: scores[lr]) if scores else trials[0].lr
    validation = {f"{lr:g}": score for lr, score in scores.items()}
    grid.kept.note_rate(row, {"seen_validation": validation, "chosen": chosen})
    return chosen


def _training_seconds(run: Path) -> float:
    """Return how long a finished run's steps took, data waits and earlier attempts included."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["time"])


def _tabulate(grid: ClassGrid, chosen: Mapping[str, float]) -> None:
    """Make results.jsonl and table.md from the finished cells of this grid, if there are any.

    A row without a rate chosen by this call is left out, whatever an earlier one has noted.
    """
    records: list[Record] = []
    for row, lr in chosen.items():
        for seed in grid.config.seeds:
            cell = ClassCell(row=row, seed=seed, lr=lr)
            records += grid.kept.load(_planned(grid, cell)) or []
    if not records:
        return
    facts = {
        "student": grid.base.student,
        "steps": grid.base.training.steps,
        "image size": grid.base.student_config.image_size,
        "weights": grid.base.training.selection,
        "seeds": len(grid.config.seeds),
    }
    write_class_tables(records, grid.kept.results, tuple(grid.rows), facts)


def _divided_without_val(table: ImageTable) -> bool:
    """Say whether a manifest gives every image a split, and none to validation."""
    return not {None, TRAINVAL, "val"} & set(table.splits)
