"""Read a run folder's result files; whatever is missing or broken is left out and said so."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from attar.errors import AttarError, UsageError
from attar.files import read_json
from attar.records import Record, read_records

_COLUMNS = ("name", "path", "domain", "label", "prediction", "confidence", "correct")
_LISTS = ("top5", "top5_confidence")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What one model said about each of N images of a split."""

    role: str
    split: str
    names: tuple[str, ...]
    paths: tuple[str | None, ...]
    domains: tuple[str | None, ...]
    labels: tuple[str | None, ...]
    """The true class, None for an unlabelled image."""
    answers: tuple[str, ...]
    """The predicted class."""
    confidence: NDArray[np.float64]
    """[N] in 0..1."""
    correct: NDArray[np.float64]
    """[N] 1 right, 0 wrong, NaN for an unlabelled image."""
    top5: tuple[tuple[tuple[str, float], ...], ...] = ()
    """[N] the best classes with their confidence, best first; empty when not recorded."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> bool:
        """Whether any image has a true class."""
        return bool(np.isfinite(self.correct).any())


@dataclass(frozen=True, kw_only=True)
class BundleFiles:
    """An exported bundle: what bundle.json says, and the size of each file in bytes."""

    description: Mapping[str, Any]
    sizes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Everything a report can use of one run folder."""

    path: Path
    name: str
    records: tuple[Record, ...] = ()
    metrics: tuple[Mapping[str, Any], ...] = ()
    predictions: Mapping[tuple[str, str], Predictions] = field(default_factory=dict)
    """By (role, split)."""
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    set_aside: tuple[Mapping[str, str], ...] = ()
    bundle: BundleFiles | None = None
    latency: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    finished: bool = True
    notes: tuple[str, ...] = ()
    """Files that could not be read, one sentence each."""


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Read run folders, named by what tells their paths apart.

    Raises UsageError for no folder at all and for one that is not a run.
    """
    if not paths:
        raise UsageError("no run given; name at least one run folder: attar report RUN")
    for path in paths:
        _check_is_run(path)
    unique = list(dict.fromkeys(path.resolve() for path in paths))
    return [read_run(path, name) for path, name in zip(unique, _short_names(unique), strict=True)]


def read_run(path: Path, name: str | None = None) -> RunFiles:
    """Read one run folder; raises UsageError when it is none."""
    _check_is_run(path)
    notes: list[str] = []

    def optional(file: str, read: Callable[[Path], Any], default: Any) -> Any:
        """Read a file that need not be there; a broken one becomes a note."""
        target = path / file
        if not target.exists():
            return default
        try:
            return read(target)
        except (AttarError, OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            notes.append(f"{file} could not be read and is left out ({_one_line(error)})")
            return default

    metrics = optional("metrics.jsonl", _read_json_lines, ())
    return RunFiles(
        path=path,
        name=name or path.resolve().name,
        records=(*optional("results.jsonl", _read_results, ()), *_read_evaluations(path)),
        metrics=metrics,
        predictions={
            key: table
            for file in sorted((path / "predictions").glob("*.parquet"))
            if (table := optional(f"predictions/{file.name}", _read_predictions, None)) is not None
            for key in [(table.role, table.split)]
        },
        config=optional("config.yaml", _read_config, {}),
        config_text=optional("config.yaml", _read_text, ""),
        environment=optional("environment.json", _read_mapping, {}),
        set_aside=optional("set_aside.json", _read_set_aside, ()),
        bundle=optional("bundle", _read_bundle, None),
        latency=optional("latency.json", _read_mapping, {})
        or optional("bundle/latency.json", _read_mapping, {}),
        command=optional("command.txt", _read_text, "").strip(),
        finished=(path / "done").exists() or not metrics,
        notes=tuple(notes),
    )


def _check_is_run(path: Path) -> None:
    how = f"make one with: attar distill --data PATH --teacher T --student S --out {path}"
    if not path.exists():
        raise UsageError(f"{path} does not exist; {how}")
    if not path.is_dir():
        raise UsageError(f"{path} is a file, not a run folder; {how}")
    if not any((path / file).is_file() for file in ("config.yaml", "results.jsonl")):
        raise UsageError(
            f"{path} is not a run: it has neither config.yaml nor results.jsonl; {how}"
        )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Name paths by their last part, or from where they part when the last parts repeat."""
    names = [path.name for path in paths]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath(paths)
    return [path.relative_to(common).as_posix() for path in paths]


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_results(path: Path) -> tuple[Record, ...]:
    return tuple(r for r in read_records(path) if isinstance(r.metrics, Mapping))


def _read_evaluations(run: Path) -> tuple[Record, ...]:
    """Read what the run's student was measured on later (RUN/evaluations/NAME/results.jsonl)."""
    files = sorted((run / "evaluations").glob("*/results.jsonl"))
    return tuple(record for file in files for record in _read_results(file))


def _read_json_lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    """Read JSON lines that hold a step; lines cut short by a crash are skipped."""
    lines = []
    for text in _read_text(path).splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return tuple(lines)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        value = yaml.safe_load(_read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(_one_line(error)) from error
    return value if isinstance(value, dict) else {}


def _read_mapping(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    return value if isinstance(value, dict) else {"": value}


def _read_set_aside(path: Path) -> tuple[Mapping[str, str], ...]:
    return tuple(
        {"path": str(entry["path"]), "reason": str(entry.get("reason", ""))}
        for entry in read_json(path)
    )


def _read_bundle(folder: Path) -> BundleFiles | None:
    description = folder / "bundle.json"
    if not description.exists():
        return None
    sizes = {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return BundleFiles(description=_read_mapping(description), sizes=sizes)


def _read_predictions(path: Path) -> Predictions:
    """Read `<role>-<split>.parquet`; split names hold no dash, so the last one parts the two."""
    role, _, split = path.stem.rpartition("-")
    present = pq.read_schema(path).names
    missing = [name for name in _COLUMNS if name not in present]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}")
    lists = [name for name in _LISTS if name in present]
    columns = pq.read_table(path, columns=[*_COLUMNS, *lists]).to_pydict()
    top5: tuple[tuple[tuple[str, float], ...], ...] = ()
    if len(lists) == len(_LISTS):
        top5 = tuple(
            tuple(zip(map(str, names or ()), map(float, values or ()), strict=False))
            for names, values in zip(columns["top5"], columns["top5_confidence"], strict=True)
        )
    return Predictions(
        role=role or "student",
        split=split,
        names=tuple(map(str, columns["name"])),
        paths=tuple(columns["path"]),
        domains=tuple(columns["domain"]),
        labels=tuple(columns["label"]),
        answers=tuple(map(str, columns["prediction"])),
        confidence=np.array([_number(v) for v in columns["confidence"]], dtype=np.float64),
        correct=np.array([_number(v) for v in columns["correct"]], dtype=np.float64),
        top5=top5,
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
