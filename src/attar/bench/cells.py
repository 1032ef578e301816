"""One cell of a grid: a run folder while it is made, one small file of results once it is done.

The results file is what the tables are made of. It carries the configuration that made it, so it
stands for its cell on any machine: a grid goes on from results alone, without the run folders.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attar.config import to_plain
from attar.data.table import ImageTable
from attar.errors import UsageError
from attar.files import read_json, sha256_file, sha256_text, write_json
from attar.methods.registry import find_method, method_options
from attar.records import Record
from attar.run import RunConfig, RunFolder, differences, plain_options
from attar.same_run import deciding
from attar.stages.request import fill_sections

log = logging.getLogger(__name__)

_PLACES = ("data", "store", "classes", "baseline")
"""Options that say where something is and not what it is."""

CAPTIONS = "captions"
"""What names the captions of a row that learns from them, beside its options."""

HELD_OUT_PART = "held_out_part"
"""The option of the splits, and what names it in a strict teacher's cell, where it is not "all"."""

STRICT = "strict-teacher"
"""Folder of the strict teachers' cells, in the place of a method's name."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    method: str
    """The row: a method, or the name of a variant."""
    held_out_domain: str
    seed: int
    lr: float
    variant: str = ""
    """What the variant is, in words; empty for a method as it comes."""
    teacher: str = ""
    """What names the row's teachers where each held-out domain has its own; else empty."""

    @property
    def name(self) -> str:
        """The cell's place below the grid's folder."""
        domain = file_name(self.held_out_domain)
        return f"{self.method}/{domain}/seed{self.seed}-lr{self.lr:g}"

    def facts(self) -> dict[str, Any]:
        """Return what the tables sort the cell's records by."""
        return {k: v for k, v in asdict(self).items() if v != ""}


def file_name(domain: str) -> str:
    """Return a domain's name as one part of a path; a manifest may name domains as it likes."""
    return domain.replace("/", "_")


def what_was_run(config: RunConfig, images: ImageTable | None = None) -> dict[str, Any]:
    """Return the options that decide a cell's result, wherever and however fast it is made.

    The method's are all named, so that a cell stays what it was when a default is changed. A cell
    that learns from the captions of `images` is told by those as well.
    """
    method = find_method(config.method)
    chosen = method_options(method, config.method_options)
    config = replace(fill_sections(config), method_options=to_plain(chosen))
    captions = {}
    if images is not None and CAPTIONS in method.needs_with(chosen):
        captions = {CAPTIONS: _captions_digest(images)}
    options = deciding(plain_options(config))
    return captions | {name: value for name, value in options.items() if name not in _PLACES}


def digest_of(images: ImageTable, *files: Path | None) -> str:
    """Return what tells data apart: a sha256 over all images with their labels, and over files.

    Where the images lie and in what order they were found makes no difference.
    """
    columns = (images.keys, images.labels, images.domains)
    rows = sorted(
        f"{key} {_name(images.class_names, label)} {_name(images.domain_names, domain)}"
        for key, label, domain in zip(*columns, strict=True)
    )
    contents = [sha256_file(path) for path in files if path is not None]
    return sha256_text("\n".join([*rows, *contents]))


def refuse_other_images(run: Path, images: ImageTable, *, captions: bool) -> None:
    """Refuse a run folder that is done, and was made of other images than a grid's.

    Raises:
        UsageError: it is such a one; with `captions` those count as well.
    """
    folder = RunFolder(run)
    if not (folder.done.is_file() and folder.images.is_file()):
        return  # one that is not done sees to it itself
    table = ImageTable.load(folder.images)
    same = digest_of(table) == digest_of(images)
    if not same or (captions and _captions_digest(table) != _captions_digest(images)):
        raise UsageError(f"{run} was run on other images, classes or captions: delete that folder")


def _captions_digest(images: ImageTable) -> str:
    rows = sorted(f"{k} {c or ''}" for k, c in zip(images.keys, images.captions, strict=True))
    return sha256_text("\n".join(rows))


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index >= 0 else ""


def save_cell(
    path: Path,
    config: Mapping[str, Any],
    records: Iterable[Record],
    facts: Mapping[str, Any],
    digest: str = "",
) -> None:
    """Write a finished cell: its configuration and its records, with `facts` in their `extra`."""
    lines = [{**asdict(r), "extra": {**r.extra, **facts}, "pretrained": ""} for r in records]
    write_json(path, {"config": dict(config), "images": digest, "records": lines})


def load_cell(
    path: Path, config: Mapping[str, Any] | None = None, digest: str = ""
) -> list[Record] | None:
    """Read a finished cell's records; None when it is not there.

    A cell that was made before cells knew their images, or their captions, is taken at its
    configuration's word.

    Raises:
        UsageError: the cell was run with another configuration than `config`, or on other images
            than those of `digest`.
    """
    if not path.is_file():
        return None
    stored = read_json(path)
    known = {k: v for k, v in (config or {}).items() if k != CAPTIONS or k in stored["config"]}
    changed = [] if config is None else differences(stored["config"], known)
    if changed:
        raise UsageError(
            f"{path} was run with another configuration ({'; '.join(changed)}); choose another "
            "--results, or delete the file to run the cell again"
        )
    if digest and stored.get("images", "") not in ("", digest):
        raise UsageError(
            f"{path} was run on other images or classes; choose another --results, or delete the "
            "file to run the cell again"
        )
    return [Record(**line) for line in stored["records"]]


def load_cells(folder: Path, alike: Mapping[tuple[str, str], Any] | None = None) -> list[Record]:
    """Read every finished cell below a folder, in the order of their names.

    Run folders, with files of their own, may stand beside the cells' results. Another grid may have
    left cells there too: those that are not `alike` in these options, {(section, name): value}, are
    left out, but for options that are a row's own.
    """
    found: list[Record] = []
    for path in sorted(folder.glob("*/*/*.json")):
        records = load_cell(path) or []
        own = str(records[0].extra.get("variant")) if records else ""
        stored = read_json(path)["config"]
        others = [
            f"{section}.{name} {_told(stored, section, name)}"
            for (section, name), value in (alike or {}).items()
            if f"{section}.{name} " not in own and _told(stored, section, name) != value
        ]
        if others:
            log.warning("%s is another grid's (%s): not in the table", path, ", ".join(others))
        else:
            found += records
    measured = (alike or {}).get(("splits", HELD_OUT_PART))
    for path in sorted(folder.glob(f"{STRICT}/*.json")):
        if measured in (None, read_json(path)["config"].get(HELD_OUT_PART, "all")):
            found += load_cell(path) or []
    return found


def _told(stored: Mapping[str, Any], section: str, name: str) -> Any:
    """Return an option of a cell; one that was made before the option had what was then done."""
    known = stored.get(section) or {}
    return known.get(name, "all") if name == HELD_OUT_PART else known[name]


def score_on_source_validation(records: Sequence[Record], cell: str) -> float:
    """Return a cell's mean per-class accuracy on its source validation images."""
    for record in records:
        is_student = record.role == "student" and record.domain == "all"
        if is_student and record.split == "val" and "mean_per_class_recall" in record.metrics:
            return record.metrics["mean_per_class_recall"]
    raise UsageError(f"cell {cell} has no source validation result; raise --splits.val-fraction")
