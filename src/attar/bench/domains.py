"""Leave one domain out: methods × held-out domains × seeds, each cell a run folder.

1. For each method, every learning rate is tried with one domain held out; the one with the best
   accuracy on *source validation* images is kept for all domains and seeds.
2. Every other cell is run with it.
3. The strict teachers are measured on the held-out images; nothing is trained for them.
4. Whenever a cell has ended, the table is made again from all the cells' results.

A cell whose results are there is never run again, so the grid goes on where it was killed.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attar import pipeline
from attar.bench.cells import (
    STRICT,
    Cell,
    digest_of,
    file_name,
    load_cell,
    load_cells,
    save_cell,
    score_on_source_validation,
    what_was_run,
)
from attar.bench.config import DomainsConfig
from attar.bench.table import write_tables
from attar.data.classes import ClassList
from attar.data.table import ImageTable
from attar.errors import UsageError, unknown_name
from attar.evaluation.models import from_store
from attar.evaluation.tasks import evaluate_models
from attar.files import read_json, write_json
from attar.methods.registry import find_method
from attar.records import Record, read_records
from attar.run import RunConfig
from attar.stages.embedding import consult, introduce, prompts_of
from attar.stages.images import read_image_table
from attar.stages.request import check_names
from attar.teachers.registry import describe_teacher_spec

log = logging.getLogger(__name__)

STRICT_ROLE = "strict teacher"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid under way: what is shared, what varies, and where it is kept."""

    base: RunConfig
    config: DomainsConfig
    classes: ClassList | None
    out: Path
    """Run folders and the store they share."""
    results: Path
    """cells/, results.jsonl, table.md and learning-rates.json."""
    digest: str = ""
    """Of the images: a cell of other images is no cell of this grid."""


def run_domains(
    base: RunConfig, config: DomainsConfig, out: Path, results: Path | None = None
) -> Path:
    """Run the grid and return the folder of its results (`out` by default).

    `base` is what all cells share; method, held-out domain, seed and learning rate are set here.

    Raises:
        UsageError: an unknown method, domain, student or teacher, images without domains, or
            results that were made with another configuration.
    """
    classes = None
    for method in config.methods:
        _, _, classes = check_names(_of_method(base, method))
    base = replace(base, store=base.store or out / "store", protocol="domainbed", references=False)
    grid = Grid(base=base, config=config, classes=classes, out=out, results=results or out)
    table = read_image_table(base.data, classes, out)
    grid = replace(grid, digest=digest_of(table))
    domains = _domains(grid, table)
    trials = {method: _trials(grid, method, domains[0]) for method in config.methods}
    for cells in trials.values():
        for cell in cells:  # refuses results of another configuration before anything is run
            _load(grid, cell)
    chosen = {method: _choose_lr(grid, method, cells) for method, cells in trials.items()}
    _tabulate(grid)
    for domain in domains:
        _measure_strict_teacher(grid, table, domain)
        for cell in _cells(config, domain, chosen):
            _run(grid, cell)
            _tabulate(grid)
    return grid.results


def _domains(grid: Grid, table: ImageTable) -> tuple[str, ...]:
    """Return the domains to hold out, refusing names the data lack before anything is run."""
    present = {table.domain_names[index] for index in table.domains if index >= 0}
    if len(present) < 2:
        raise UsageError(f"leaving one domain out needs two or more domains ({table.layout})")
    asked = (*grid.config.domains, *([grid.config.lr_domain] if grid.config.lr_domain else []))
    for name in asked:
        if name not in present:
            raise unknown_name("domain", name, present)
    domains = grid.config.domains or tuple(sorted(present))
    if grid.config.strict_teacher is not None:
        for name in domains:
            describe_teacher_spec(grid.config.strict_teacher_of(name))
    return domains


def _trials(grid: Grid, method: str, first_domain: str) -> list[Cell]:
    """Return the cells that a method's learning rate is chosen by."""
    domain, seed = grid.config.lr_domain or first_domain, grid.config.seeds[0]
    return [Cell(method=method, held_out_domain=domain, seed=seed, lr=lr) for lr in grid.config.lrs]


def _choose_lr(grid: Grid, method: str, cells: Sequence[Cell]) -> float:
    """Try every learning rate with one domain held out; keep the best on source validation."""
    scores = {}
    for cell in cells:
        scores[cell.lr] = score_on_source_validation(_run(grid, cell), cell.name)
        log.info("%s, lr %g: %.4f on source validation images", method, cell.lr, scores[cell.lr])
    chosen = max(scores, key=lambda lr: scores[lr])
    path = grid.results / "learning-rates.json"
    noted = read_json(path) if path.is_file() else {}
    noted[method] = {
        "held_out_domain": cells[0].held_out_domain,
        "source_validation": {f"{value:g}": score for value, score in scores.items()},
        "chosen": chosen,
    }
    write_json(path, dict(sorted(noted.items())))
    return chosen


def _cells(config: DomainsConfig, domain: str, chosen: dict[str, float]) -> Iterator[Cell]:
    for seed in config.seeds:
        for method in config.methods:
            yield Cell(method=method, held_out_domain=domain, seed=seed, lr=chosen[method])


def _of_method(base: RunConfig, method: str) -> RunConfig:
    """Return what all of a method's cells share; one that needs no teacher waits for none."""
    if "teacher" in find_method(method).needs:
        return replace(base, method=method)
    return replace(base, method=method, teacher=None, store=None)


def _config_of(grid: Grid, cell: Cell) -> RunConfig:
    base = _of_method(grid.base, cell.method)
    return replace(
        base,
        splits=replace(base.splits, held_out_domain=cell.held_out_domain, seed=cell.seed),
        training=replace(base.training, lr=cell.lr, seed=cell.seed),
    )


def _results_of(grid: Grid, cell: Cell) -> Path:
    return grid.results / "cells" / f"{cell.name}.json"


def _load(grid: Grid, cell: Cell) -> list[Record] | None:
    config = what_was_run(_config_of(grid, cell))
    return load_cell(_results_of(grid, cell), config, grid.digest)


def _run(grid: Grid, cell: Cell) -> list[Record]:
    """Return a cell's records, running it when they are not there."""
    records = _load(grid, cell)
    if records is None:
        config, run = _config_of(grid, cell), grid.out / "cells" / cell.name
        command = f"attar bench domains ({cell.name})"
        pipeline.distill(config, run, command=command, estimated=False)
        records = read_records(run / "results.jsonl")
        path = _results_of(grid, cell)
        save_cell(path, what_was_run(config), records, cell.facts(), grid.digest)
        log.info("cell %s is done", cell.name)
    return records


def _measure_strict_teacher(grid: Grid, table: ImageTable, domain: str) -> None:
    """Measure the teacher that never saw a domain on all of that domain's images."""
    if grid.config.strict_teacher is None:
        return
    spec = grid.config.strict_teacher_of(domain)
    path = grid.results / "cells" / STRICT / f"{file_name(domain)}.json"
    asked = {"teacher": spec, "subset": grid.base.data.subset}
    if load_cell(path, asked, grid.digest) is not None:
        return
    index = table.domain_names.index(domain)
    part = table.select([row for row, d in enumerate(table.domains) if d == index])
    folder = grid.out / STRICT / file_name(domain)
    prompts = prompts_of(grid.classes, table, grid.base.data.templates)
    teacher, _ = introduce(spec, folder / "store", needed=True)
    knowledge = consult(teacher, part, prompts, folder / "store", grid.base.embed)
    model = replace(from_store(knowledge.store), role=STRICT_ROLE)
    dataset = "+".join(place.name for place in grid.base.data.data)
    records = evaluate_models(
        [model],
        part,
        "held_out",
        knowledge.class_features,
        folder,
        dataset,
        grid.base.evaluation,
    )
    facts = {"method": "", "held_out_domain": domain, "seed": grid.config.seeds[0], "lr": 0.0}
    save_cell(path, asked, records, facts, grid.digest)


def _tabulate(grid: Grid) -> None:
    """Make results.jsonl and table.md from the finished cells with their methods' chosen rates."""
    chosen = read_json(grid.results / "learning-rates.json")
    wanted = [
        record
        for record in load_cells(grid.results / "cells")
        if record.role == STRICT_ROLE
        or chosen.get(record.extra["method"], {}).get("chosen") == record.extra["lr"]
    ]
    facts = {
        "student": grid.base.student,
        "steps": grid.base.training.steps,
        "image size": grid.base.student_config.image_size,
        "seeds": len(grid.config.seeds),
    }
    write_tables(wanted, grid.results, facts)
