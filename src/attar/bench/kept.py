"""The cells of a grid on disk: which are missing, what each one found, and which rates won.

A cell is a run folder in OUT/cells while it is made, and one file in RESULTS/cells once it is done.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.bench.cells import (
    CAPTIONS,
    load_cell,
    refuse_other_images,
    save_cell,
    score_on_source_validation,
)
from attar.bench.jobs import Task
from attar.bench.running import Running
from attar.data.table import ImageTable
from attar.files import alone, read_json, write_json
from attar.records import Record, read_records
from attar.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A cell that a grid wants."""

    name: str
    """Its place below the grid's folders."""
    config: RunConfig
    said: Mapping[str, Any]
    """What decides its result: a file that says otherwise is of another cell."""
    facts: Mapping[str, Any]
    """What the tables sort its records by."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Where a grid's cells are kept, and how those that are missing are run."""

    out: Path
    """Run folders and the store they share."""
    results: Path
    """cells/, learning-rates.json and the tables."""
    images: ImageTable
    """What is trained on and asked about; a run folder with others is no cell of this grid."""
    digest: str
    """Of the images and classes: a cell of others is no cell of this grid."""
    command: str
    """What makes the cells: "attar bench domains"."""
    running: Running
    facts_of: Callable[[Path], Mapping[str, Any]] = lambda run: {}
    """Run folder -> what more is known of its cell once it is done."""

    def load(self, cell: Planned) -> list[Record] | None:
        """Return a finished cell's records, None for one that is missing.

        Raises:
            UsageError: the file there was run with another configuration or on other images.
        """
        return load_cell(self._file(cell), cell.said, self.digest)

    def run(self, cells: Sequence[Planned], after: Callable[[], object]) -> None:
        """Run the cells whose results are not there; call `after` whenever one is done.

        Raises:
            UsageError: a cell's run folder is done, and on other images.
        """
        missing = {cell.name: cell for cell in cells if self.load(cell) is None}
        for cell in missing.values():
            refuse_other_images(
                self.run_folder(cell.name), self.images, captions=CAPTIONS in cell.said
            )
        self.running.progress.found(cell.name for cell in cells if cell.name not in missing)

        def keep(task: Task) -> None:
            self._save(missing[task.name])
            after()

        self.running.run([self._task(cell) for cell in missing.values()], keep)

    def run_folder(self, name: str) -> Path:
        """Return the run folder of a cell."""
        return self.out / "cells" / name

    def score(self, cell: Planned) -> float:
        """Return a finished cell's score on source validation images."""
        return score_on_source_validation(self.load(cell) or [], cell.name)

    def rates(self) -> dict[str, Any]:
        """Return what is noted of each row's learning rate."""
        path = self.results / "learning-rates.json"
        noted: dict[str, Any] = read_json(path) if path.is_file() else {}
        return noted

    def note_rate(self, row: str, entry: Mapping[str, Any]) -> None:
        """Write how a row's learning rate was chosen beside those of the other rows."""
        file = self.results / "learning-rates.json"
        with alone(file):  # other grids may share the results
            rates = {**self.rates(), row: dict(entry)}
            write_json(file, dict(sorted(rates.items())))

    def _file(self, cell: Planned) -> Path:
        return self.results / "cells" / f"{cell.name}.json"

    def _task(self, cell: Planned) -> Task:
        return Task(
            name=cell.name,
            config=cell.config,
            run=self.run_folder(cell.name),
            command=f"{self.command} ({cell.name})",
            known_files=self.out / "files.parquet",
        )

    def _save(self, cell: Planned) -> None:
        run = self.run_folder(cell.name)
        facts = {**cell.facts, **self.facts_of(run)}
        records = read_records(run / "results.jsonl")
        save_cell(self._file(cell), cell.said, records, facts, self.digest)
