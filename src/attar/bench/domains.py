"""Leave one domain out: rows × held-out domains × seeds, each cell a run folder.

1. For each row (a method, or a variant of one), every learning rate is tried with one domain held
   out; the one with the best accuracy on *source validation* images is kept for all domains and
   seeds.
2. Every other cell is run with it.
3. The strict teachers are measured on the held-out images; nothing is trained for them.
4. Whenever a cell has ended, the table is made again from all the cells' results.

A cell whose results are there is never run again, so the grid goes on where it was killed. A cell
that fails stops no other; the grid then ends in an error that names it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attar.bench.cells import (
    HELD_OUT_PART,
    STRICT,
    Cell,
    digest_of,
    file_name,
    load_cell,
    load_cells,
    save_cell,
    what_was_run,
)
from attar.bench.config import DomainsConfig
from attar.bench.kept import Kept, Planned
from attar.bench.markdown import RESULTS
from attar.bench.oracle import check_snapshots, oracle_record
from attar.bench.progress import Progress
from attar.bench.rows import Row, in_grid, make_rows, names_domains, of_domain
from attar.bench.running import Running
from attar.bench.table import write_tables
from attar.data.classes import ClassList
from attar.data.domainbed import make_domainbed_splits
from attar.data.table import ImageTable
from attar.errors import UsageError, unknown_name
from attar.evaluation.models import from_store
from attar.evaluation.tasks import evaluate_models
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
    """A grid under way: what is shared, what varies, and where its cells are kept."""

    base: RunConfig
    config: DomainsConfig
    rows: Mapping[str, Row]
    classes: ClassList | None
    images: ImageTable
    domains: tuple[str, ...]
    """Held out in turn."""
    kept: Kept


def run_domains(
    base: RunConfig, config: DomainsConfig, out: Path, results: Path | None = None
) -> Path:
    """Run the grid and return the folder of its results (`out` by default).

    `base` is what all cells share; row, held-out domain, seed and learning rate are set here.

    Raises:
        UsageError: an unknown method, domain, student or teacher, images without domains, or
            results that were made with another configuration.
        AttarError: a cell failed; what does not depend on it is done.
    """
    grid = _open(base, config, out, results or out)
    kept = grid.kept
    trials = {name: _trials(grid, row) for name, row in grid.rows.items()}
    planned = [_planned(grid, cell) for cells in trials.values() for cell in cells]
    for one in planned:
        kept.load(one)  # refuses results of another configuration before anything is run
    kept.run(planned, after=lambda: None)
    chosen = {
        name: _choose_lr(grid, cells)
        for name, cells in trials.items()
        if not any(cell.name in kept.running.failed for cell in cells)
    }
    if chosen:
        _tabulate(grid)
    for domain in grid.domains:
        _measure_strict_teacher(grid, domain)
    cells = [_planned(grid, cell) for cell in _cells(grid, chosen)]
    kept.run(cells, after=lambda: _tabulate(grid))
    if chosen:
        _tabulate(grid)
    kept.running.refuse_failures()
    return kept.results


def _open(base: RunConfig, config: DomainsConfig, out: Path, results: Path) -> Grid:
    """Check and read everything; run nothing."""
    rows, classes = make_rows(base, config)
    if config.oracle:
        check_snapshots(base.training.snapshots)
    rows = tuple(in_grid(row, base, out) for row in rows)
    images = read_image_table(base.data, classes, out)
    domains = _domains(config, images)
    tried = {*domains, config.lr_domain or domains[0]}
    for row in rows:
        for domain in sorted(tried) if names_domains(row.config) else ():
            check_names(of_domain(row.config, domain, base, out))
    log.info("layout: %s", images.layout)
    once = len(domains) * len(config.seeds) - (0 if len(tried) > len(domains) else 1)
    progress = Progress(sum(len(row.lrs) + once for row in rows))
    return Grid(
        base=base,
        config=config,
        rows={row.name: row for row in rows},
        classes=classes,
        images=images,
        domains=domains,
        kept=Kept(
            out=out,
            results=results,
            images=images,
            digest=digest_of(images),
            command="attar bench domains",
            running=Running(jobs=config.jobs, progress=progress),
        ),
    )


def _domains(config: DomainsConfig, images: ImageTable) -> tuple[str, ...]:
    """Return the domains to hold out, refusing names the data lack before anything is run."""
    present = {images.domain_names[index] for index in images.domains if index >= 0}
    if len(present) < 2:
        raise UsageError(f"leaving one domain out needs two or more domains ({images.layout})")
    for name in (*config.domains, *([config.lr_domain] if config.lr_domain else [])):
        if name not in present:
            raise unknown_name("domain", name, present)
    domains = config.domains or tuple(sorted(present))
    if config.strict_teacher is not None:
        for name in domains:
            describe_teacher_spec(config.strict_teacher_of(name))
    return domains


def _trials(grid: Grid, row: Row) -> list[Cell]:
    """Return the cells that a row's learning rate is chosen by."""
    domain, seed = grid.config.lr_domain or grid.domains[0], grid.config.seeds[0]
    return [_cell(grid, row.name, domain, seed, lr) for lr in row.lrs]


def _cells(grid: Grid, chosen: Mapping[str, float]) -> list[Cell]:
    """Return the cells of all numbers in the table, in the order they are run."""
    return [
        _cell(grid, name, domain, seed, lr)
        for domain in grid.domains
        for seed in grid.config.seeds
        for name, lr in chosen.items()
    ]


def _cell(grid: Grid, row: str, domain: str, seed: int, lr: float) -> Cell:
    given = grid.rows[row]
    return Cell(
        method=row,
        held_out_domain=domain,
        seed=seed,
        lr=lr,
        variant=given.variant,
        teacher=(given.config.teacher or "") if names_domains(given.config) else "",
    )


def _planned(grid: Grid, cell: Cell) -> Planned:
    own = of_domain(grid.rows[cell.method].config, cell.held_out_domain, grid.base, grid.kept.out)
    config = replace(
        own,
        splits=replace(own.splits, seed=cell.seed),
        training=replace(own.training, lr=cell.lr, seed=cell.seed),
    )
    said = what_was_run(config, grid.images)
    return Planned(name=cell.name, config=config, said=said, facts=cell.facts())


def _choose_lr(grid: Grid, cells: Sequence[Cell]) -> float:
    """Keep the learning rate that is best on source validation images."""
    scores = {cell.lr: grid.kept.score(_planned(grid, cell)) for cell in cells}
    for lr, score in scores.items():
        log.info("%s, lr %g: %.4f on source validation", cells[0].method, lr, score)
    chosen = max(scores, key=lambda lr: scores[lr])
    entry = {
        "held_out_domain": cells[0].held_out_domain,
        "source_validation": {f"{value:g}": score for value, score in scores.items()},
        "chosen": chosen,
    }
    grid.kept.note_rate(cells[0].method, entry)
    return chosen


def _measure_strict_teacher(grid: Grid, domain: str) -> None:
    """Measure the teacher that never saw a domain on what the first seed's cells measure of it."""
    if grid.config.strict_teacher is None:
        return
    spec = grid.config.strict_teacher_of(domain)
    path = grid.kept.results / "cells" / STRICT / f"{file_name(domain)}.json"
    asked = {"teacher": spec, "subset": grid.base.data.subset}
    measured = grid.base.splits.held_out_part
    if measured != "all":
        asked[HELD_OUT_PART] = measured
    if load_cell(path, asked, grid.kept.digest) is not None:
        return
    images = grid.images
    seed = grid.config.seeds[0]
    splits = make_domainbed_splits(images, domain, seed, held_out_part=measured)
    part = splits.held_out
    folder = grid.kept.out / STRICT / file_name(domain)
    prompts = prompts_of(grid.classes, images, grid.base.data.templates)
    teacher, _ = introduce(spec, folder / "store", needed=True, config=grid.base.embed)
    knowledge = consult(teacher, part, prompts, folder / "store", grid.base.embed)
    model = replace(from_store(knowledge.store), role=STRICT_ROLE)
    dataset = grid.base.data.name
    records = evaluate_models(
        [model],
        part,
        "held_out",
        knowledge.class_features,
        folder,
        dataset,
        grid.base.evaluation,
    )
    facts = {"method": "", "held_out_domain": domain, "seed": seed, "lr": 0.0}
    save_cell(path, asked, records, facts, grid.kept.digest)


def _tabulate(grid: Grid) -> None:
    """Make the results and the table from the finished cells with their rows' chosen rates.

    A domain that only the rates were chosen on is no result, unless an earlier call held it out;
    a row of this call then has there the cell that its rate was chosen with.
    """
    rates = grid.kept.rates()
    only_tried = {grid.config.lr_domain} - set(grid.domains) - _held_out_before(grid.kept.results)
    wanted = [
        record
        for record in load_cells(grid.kept.results / "cells", _alike(grid.base))
        if record.role == STRICT_ROLE
        or rates.get(record.extra["method"], {}).get("chosen") == record.extra["lr"]
    ]
    wanted = [record for record in wanted if record.extra["held_out_domain"] not in only_tried]
    if grid.config.oracle:
        wanted += _oracle(grid, wanted)
    facts = {
        "student": grid.base.student,
        "steps": grid.base.training.steps,
        "image size": grid.base.student_config.image_size,
        "seeds": _seeds(wanted) or len(grid.config.seeds),
    }
    if grid.base.splits.held_out_part == "in":
        facts["measured"] = "80 % of the held-out domain, DomainBed's test_in"
    write_tables(wanted, grid.kept.results, facts)


def _held_out_before(results: Path) -> set[str]:
    """Return the domains in the results of earlier calls; a call with fewer keeps them all."""
    file = results / RESULTS
    records = read_records(file) if file.is_file() else []
    return {str(record.extra.get("held_out_domain", "")) for record in records}


def _alike(base: RunConfig) -> dict[tuple[str, str], Any]:
    """Return what all rows of a table share, unless a row says otherwise."""
    return {
        ("student", "name"): base.student,
        ("student", "image_size"): base.student_config.image_size,
        ("training", "steps"): base.training.steps,
        ("splits", HELD_OUT_PART): base.splits.held_out_part,
    }


def _seeds(records: Sequence[Record]) -> str:
    """Say how many seeds the rows have: "3", or "1 to 3" where calls with other seeds made them."""
    found: dict[str, set[int]] = {}
    for record in records:
        if record.role == "student":
            found.setdefault(record.extra["method"], set()).add(record.extra["seed"])
    counts = sorted(len(seeds) for seeds in found.values())
    return " to ".join(dict.fromkeys(str(count) for count in counts[:1] + counts[-1:]))


def _oracle(grid: Grid, records: Sequence[Record]) -> list[Record]:
    """Return the oracle's choice in each of the cells that `records` are of."""
    names = ("method", "held_out_domain", "seed", "lr", "variant", "teacher")
    cells = dict.fromkeys(
        Cell(**{name: r.extra[name] for name in names if name in r.extra})
        for r in records
        if r.role == "student"
    )
    kept = grid.kept.results / "oracle"
    found = [oracle_record(c, grid.kept.run_folder(c.name), kept / f"{c.name}.json") for c in cells]
    return [record for record in found if record is not None]
