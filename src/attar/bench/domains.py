"""Leave one domain out: methods × held-out domains × seeds, each cell a run folder.

1. For each method, every learning rate is tried with one domain held out; the one with the best
   accuracy on *source validation* images is kept for all domains and seeds.
2. Every other cell is run with it.
3. The teachers are measured on the held-out images without training anything.
4. What the run folders hold is gathered into one results file.

A cell that is done is never run again, so the grid goes on where it was killed.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attar import pipeline
from attar.bench.config import DomainsConfig
from attar.bench.table import write_tables
from attar.errors import AttarError, UsageError, unknown_name
from attar.evaluation.models import from_store
from attar.evaluation.tasks import evaluate_models
from attar.files import read_json, write_json
from attar.methods.registry import find_method
from attar.records import Record, read_records
from attar.run import RunConfig, RunFolder
from attar.stages.embedding import consult, introduce, prompts_of
from attar.stages.images import read_image_table
from attar.teachers.registry import describe_teacher_spec

log = logging.getLogger(__name__)

STRICT_ROLE = "strict teacher"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    method: str
    held_out_domain: str
    seed: int
    lr: float

    @property
    def name(self) -> str:
        """The cell's folder below the grid's."""
        return f"{self.method}/{self.held_out_domain}/seed{self.seed}-lr{self.lr:g}"


def run_domains(
    base: RunConfig,
    grid: DomainsConfig,
    out: Path,
    *,
    results: Path | None = None,
    after_cell: Callable[[], None] = lambda: None,
) -> Path:
    """Run the grid and write results.jsonl, table.md and learning-rates.json.

    Args:
        base: what all cells share; method, held-out domain, seed and learning rate are set here.
        grid: what varies.
        out: folder of the cells and of the store they share.
        results: folder of the gathered files; `out` by default.
        after_cell: called whenever a cell has ended and the gathered files are up to date.

    Returns:
        The folder of the gathered files.

    Raises:
        UsageError: an unknown method or domain, or images without domains.
    """
    for method in grid.methods:
        find_method(method)
    base = replace(base, store=base.store or out / "store", protocol="domainbed")
    domains = _domains(base, grid, out)
    target = results or out
    chosen: dict[str, float] = {}

    def finish(cell: Cell) -> None:
        _gather(base, grid, out, target, chosen)
        after_cell()
        log.info("cell %s is done", cell.name)

    lr_domain = grid.lr_domain or domains[0]
    for method in grid.methods:
        scores = {}
        for lr in grid.lrs:
            cell = Cell(method=method, held_out_domain=lr_domain, seed=grid.seeds[0], lr=lr)
            _run(base, cell, out)
            scores[lr] = source_validation_score(out / cell.name)
            log.info("%s, lr %g: %.4f on source validation images", method, lr, scores[lr])
        chosen[method] = max(scores, key=lambda lr: scores[lr])
        _note_choice(target, method, lr_domain, scores, chosen[method])
        finish(cell)
    _measure_strict_teachers(base, grid, domains, out)
    for cell in _cells(grid, domains, chosen):
        _run(base, cell, out)
        finish(cell)
    return target


def _domains(base: RunConfig, grid: DomainsConfig, out: Path) -> tuple[str, ...]:
    """Return the domains to hold out, refusing names the data lacks before anything is run."""
    table = read_image_table(base.data, None, out)
    present = {table.domain_names[index] for index in table.domains if index >= 0}
    if len(present) < 2:
        raise UsageError(f"leaving one domain out needs two or more domains ({table.layout})")
    for name in (*grid.domains, *([grid.lr_domain] if grid.lr_domain else [])):
        if name not in present:
            raise unknown_name("domain", name, present)
    domains = grid.domains or tuple(sorted(present))
    if grid.strict_teacher is not None:
        for name in domains:
            describe_teacher_spec(grid.strict_teacher.format(domain=name))
    return domains


def _cells(
    grid: DomainsConfig, domains: tuple[str, ...], chosen: dict[str, float]
) -> Iterator[Cell]:
    """Yield the cells domain by domain, so that every method has a column before the next."""
    for domain in domains:
        for seed in grid.seeds:
            for method in grid.methods:
                yield Cell(method=method, held_out_domain=domain, seed=seed, lr=chosen[method])


def _run(base: RunConfig, cell: Cell, out: Path) -> Path:
    asks = "teacher" in find_method(cell.method).needs
    config = replace(
        base,
        method=cell.method,
        # A method that needs no teacher is not made to wait for one.
        teacher=base.teacher if asks else None,
        store=base.store if asks else None,
        references=False,
        splits=replace(base.splits, held_out_domain=cell.held_out_domain, seed=cell.seed),
        training=replace(base.training, lr=cell.lr, seed=cell.seed),
    )
    command = f"attar bench domains ({cell.name})"
    return pipeline.distill(config, out / cell.name, command=command, estimated=False)


def source_validation_score(run: Path) -> float:
    """Return a finished run's mean per-class accuracy on its source validation images."""
    for record in read_records(run / "results.jsonl"):
        is_student = record.role == "student" and record.domain == "all"
        if is_student and record.split == "val" and "mean_per_class_recall" in record.metrics:
            return record.metrics["mean_per_class_recall"]
    raise AttarError(f"{run} has no source validation result; delete it and run the grid again")


def _note_choice(
    target: Path, method: str, domain: str, scores: dict[float, float], lr: float
) -> None:
    path = target / "learning-rates.json"
    noted: dict[str, Any] = read_json(path) if path.is_file() else {}
    noted[method] = {
        "held_out_domain": domain,
        "source_validation": {f"{value:g}": score for value, score in scores.items()},
        "chosen": lr,
    }
    write_json(path, noted)


def _measure_strict_teachers(
    base: RunConfig, grid: DomainsConfig, domains: tuple[str, ...], out: Path
) -> None:
    """Measure, for each domain, the teacher that never saw it on all of that domain's images."""
    if grid.strict_teacher is None:
        return
    table = read_image_table(base.data, None, out)
    prompts = prompts_of(None, table, base.data.templates)
    for domain in domains:
        folder = out / "strict-teacher" / domain
        if (folder / "results.jsonl").is_file():
            continue
        index = table.domain_names.index(domain)
        part = table.select([i for i, d in enumerate(table.domains) if d == index])
        spec = grid.strict_teacher.format(domain=domain)
        teacher, _ = introduce(spec, folder / "store", needed=True)
        knowledge = consult(teacher, part, prompts, folder / "store", base.embed)
        model = replace(from_store(knowledge.store), role=STRICT_ROLE)
        dataset = "+".join(path.name for path in base.data.data)
        evaluate_models(
            [model], part, "held_out", knowledge.class_features, folder, dataset, base.evaluation
        )


def _gather(
    base: RunConfig, grid: DomainsConfig, out: Path, target: Path, chosen: dict[str, float]
) -> None:
    """Collect the records of the finished cells into one file, and make the table of them."""
    lines: list[Record] = []
    for path in sorted(out.rglob("results.jsonl")):
        run = RunFolder(path.parent)
        if path.parent == target or not (run.done.is_file() or "strict-teacher" in path.parts):
            continue
        for record in read_records(path):
            lines.append(replace(record, extra={**record.extra, **_origin(path, out)}))
    wanted = [
        record
        for record in lines
        if record.role == STRICT_ROLE or chosen.get(record.extra["method"]) == record.extra["lr"]
    ]
    write_tables(wanted, target, {"steps": base.training.steps, "seeds": list(grid.seeds)})


def _origin(path: Path, out: Path) -> dict[str, Any]:
    """Read method, held-out domain, seed and learning rate off a cell's folder."""
    parts = path.parent.relative_to(out).parts
    if parts[0] == "strict-teacher":
        return {"method": "", "held_out_domain": parts[1], "seed": 0, "lr": 0.0}
    seed, _, lr = parts[2].partition("-lr")
    return {
        "method": parts[0],
        "held_out_domain": parts[1],
        "seed": int(seed.removeprefix("seed")),
        "lr": float(lr),
    }
