"""One table from the records of a grid: a row a method, a column a held-out domain."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attar.bench.markdown import NOTHING, markdown, mean_text, write_results
from attar.bench.oracle import ROLE as ORACLE
from attar.bench.paired import Interval, paired_difference
from attar.records import Record

METRIC = "acc1"
REFERENCE = "erm"
"""The row that all others are compared with."""
_POCKET = "teacher pocket (its head saw this domain)"
_ROW_NAMES = {
    "teacher": "teacher",
    "strict teacher": "strict teacher (never saw this domain)",
    "baseline": "backbone with only its projection fitted",
}
_ORDER = (*_ROW_NAMES, "student")
"""Roles from the top of the table to its bottom."""

Values = dict[tuple[str, int], float]
"""(held-out domain, seed) -> accuracy in %."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """What is known of one row."""

    name: str
    role: str = "student"
    """Whose answers they are, as in the records; an oracle is a student."""
    outside: Values = field(default_factory=dict)
    """On the held-out domain."""
    inside: Values = field(default_factory=dict)
    """On source validation images."""
    oracle: Values = field(default_factory=dict)
    """On the held-out domain, with the checkpoint that is best on it."""
    variant: str = ""
    """What a variant is, in words."""

    @property
    def repeated(self) -> bool:
        """Whether the values repeat one measurement instead of being of different seeds."""
        return self.role != "student"

    def minus(self, other: "TableRow") -> Interval | None:
        """Return the mean paired difference to another row with its 95 % interval.

        None for the row itself, for what is not trained, and where fewer than two cells pair up.
        """
        if self.repeated or self.name == other.name:
            return None
        pairs = [(value, other.outside.get(cell)) for cell, value in self.outside.items()]
        return paired_difference([ours - theirs for ours, theirs in pairs if theirs is not None])


@dataclass(frozen=True, kw_only=True)
class DomainsTable:
    """The numbers of a grid, sorted into rows and columns."""

    domains: tuple[str, ...]
    rows: tuple[TableRow, ...]

    @property
    def reference(self) -> TableRow | None:
        """The row `erm`, where there is one."""
        return next((row for row in self.rows if row.name == REFERENCE), None)

    @property
    def has_oracle(self) -> bool:
        """Whether an oracle was asked for."""
        return any(row.oracle for row in self.rows)

    def whole(self, row: TableRow) -> bool:
        """Whether a row has a value for every domain."""
        return {domain for domain, _ in row.outside} == set(self.domains)


def read_table(records: Iterable[Record]) -> DomainsTable:
    """Sort records into a table: top-1 accuracy in %, on all images of a split together."""
    found: dict[str, TableRow] = {}
    # Variants first: what their cells say of a teacher gives way to what the plain ones say of it.
    ordered = sorted(records, key=lambda record: not record.extra.get("variant"))
    several = len({_teacher_of(record) for record in ordered if record.role == "teacher"}) > 1
    for record in ordered:
        name = _row_of(record, several_teachers=several)
        if name is None or record.domain != "all" or METRIC not in record.metrics:
            continue
        role = "student" if record.role == ORACLE else record.role
        variant = record.extra.get("variant", "") if role == "student" else ""
        row = found.setdefault(name, TableRow(name=name, role=role, variant=variant))
        parts = {"held_out": row.oracle if record.role == ORACLE else row.outside}
        part = {**parts, "val": row.inside}.get(record.split)
        if part is not None:
            cell = (str(record.extra["held_out_domain"]), int(record.extra.get("seed", 0)))
            part[cell] = 100 * record.metrics[METRIC]
    rows = [row for row in found.values() if row.outside]
    domains = sorted({domain for row in rows for domain, _ in row.outside})
    return DomainsTable(domains=tuple(domains), rows=tuple(sorted(rows, key=_order)))


def write_tables(records: Sequence[Record], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write results.jsonl, table.md and page.html, each whole or not at all; return table.md."""
    from attar.bench.page import write_page

    write_page(read_table(records), folder / "page.html", facts)
    return write_results(records, folder, domains_table(records, facts))


def domains_table(records: Iterable[Record], facts: Mapping[str, Any]) -> str:
    """Return the table as Markdown, with what its columns mean below it."""
    table = read_table(records)
    lines = [markdown(["", *columns(table)], [[r.name, *cells(table, r)] for r in table.rows])]
    lines += [" ".join(notes(table, facts)), *(f"- {line}" for line in variant_notes(table))]
    return "\n\n".join(lines[:2]) + "".join(f"\n{line}" for line in lines[2:]) + "\n"


def columns(table: DomainsTable) -> list[str]:
    """Return the headings of the columns of numbers."""
    more = ["oracle mean"] if table.has_oracle else []
    more += [f"minus {REFERENCE} [95 %]"] if table.reference is not None else []
    return [*table.domains, "mean", "worst", "in-domain", *more]


def cells(table: DomainsTable, row: TableRow) -> list[str]:
    """Return a row's texts: mean over seeds, ± their standard deviation from two seeds on.

    `mean` and `worst` are over domains, and given where there are all of them.
    """
    spread, whole = not row.repeated, table.whole(row)
    by_domain = _by_domain(row.outside)
    texts = [mean_text(by_domain.get(domain, []), spread=spread) for domain in table.domains]
    texts.append(_over_domains(row.outside, spread=spread) if whole else NOTHING)
    means = [statistics.fmean(values) for values in by_domain.values()]
    texts.append(f"{min(means):.1f}" if whole else NOTHING)
    texts.append(_over_domains(row.inside, spread=spread))
    if table.has_oracle:
        same = row.oracle.keys() == row.outside.keys() and whole
        texts.append(_over_domains(row.oracle, spread=spread) if same else NOTHING)
    if table.reference is not None:
        difference = row.minus(table.reference)
        texts.append(NOTHING if difference is None else difference.text())
    return texts


def notes(table: DomainsTable, facts: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know, a sentence each."""
    noted = ", ".join(f"{name}: {value}" for name, value in facts.items())
    said = [
        f"Top-1 accuracy in % on the held-out domain ({noted}).",
        "worst: the lowest of the domains; in-domain: source validation images, averaged over the "
        "held-out domains.",
    ]
    if table.reference is not None:
        said.append(
            f"minus {REFERENCE}: the mean difference to it, cell by cell (held-out domain and "
            "seed), with Student's 95 % interval over these cells."
        )
    if table.has_oracle:
        said.append(
            "oracle: in each cell, the saved checkpoint that is best on the held-out domain "
            "itself; an upper bound, no result of the protocol."
        )
    return said


def variant_notes(table: DomainsTable) -> list[str]:
    """Return what each variant is."""
    return [f"{row.name}: {row.variant}." for row in table.rows if row.variant]


def _by_domain(values: Values) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for (domain, _), value in sorted(values.items()):
        found.setdefault(domain, []).append(value)
    return found


def _over_domains(values: Values, *, spread: bool) -> str:
    """Return the mean over domains of the mean over seeds, ± the deviation of the seeds' means.

    The deviation is over seeds that every domain was held out with.
    """
    by_domain = _by_domain(values)
    if not by_domain:
        return NOTHING
    mean = f"{statistics.fmean([statistics.fmean(v) for v in by_domain.values()]):.1f}"
    seeds = sorted({seed for _, seed in values})
    of_seeds = [
        statistics.fmean([values[domain, seed] for domain in by_domain])
        for seed in seeds
        if all((domain, seed) in values for domain in by_domain)
    ]
    if not spread or len(of_seeds) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(of_seeds):.1f}"


def _row_of(record: Record, *, several_teachers: bool) -> str | None:
    """Return the name of a record's row; of several teachers, each has a row with its own name."""
    if record.role in ("student", ORACLE):
        return str(record.extra.get("method") or record.method)
    if record.role == "teacher" and record.model == "pocket":
        return _POCKET
    if record.role == "teacher" and several_teachers:
        return f"{_ROW_NAMES['teacher']} {_teacher_of(record)}"
    return _ROW_NAMES.get(record.role)


def _teacher_of(record: Record) -> str:
    """Return the teacher's name; of a row with one for each domain, what names them all."""
    return str(record.extra.get("teacher") or record.model)


def _order(row: TableRow) -> tuple[int, bool, str]:
    return _ORDER.index(row.role), row.name != _POCKET, row.name
