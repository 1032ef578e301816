"""Sentences in a file, read line by line: text, JSON Lines, CSV or Parquet.

An entry is one sentence, or several that stand for the same thing (the captions of an image, the
prompts of a class), of which training takes one at random.

    text (any other name)   one sentence a line
    .jsonl                  a line: "sentence", ["several", "of them"], {"text": either of these},
                            or {"class": "a name"}; "caption" and "sentence" are as good as "text"
    .csv, .parquet          a column text, caption or sentence, such as a manifest's captions; a
                            Parquet list holds several
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from attar.errors import UsageError

Entry = tuple[str, ...]
"""Texts of which one is taken at each visit; mostly one."""
OfClass = Callable[[str], Sequence[str]]
"""From a class name to its prompts."""

COLUMNS = ("text", "caption", "sentence")
_ROWS = 8192


def read_sentences(path: Path) -> list[str]:
    """Return every sentence of a file once, in the order of the file.

    Raises:
        UsageError: the file cannot be read or holds no sentence.
    """
    return list(dict.fromkeys(text for entry in read_entries(path) for text in entry))


def read_entries(path: Path, of_class: OfClass | None = None) -> Iterator[Entry]:
    """Yield the entries of a file as they are read; empty ones are dropped, repeated ones kept.

    Sentences lose the white space around them. `of_class` gives the prompts of {"class": name}.

    Raises:
        UsageError: while reading: the file cannot be read, a line or column is not as described
            above, or there is no sentence at all.
    """
    kinds: dict[str, Callable[[Path, OfClass | None], Iterator[Iterable[str]]]] = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    found = False
    try:
        for texts in kinds.get(path.suffix.lower(), _text_lines)(path, of_class):
            entry = tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))
            if entry:
                found = True
                yield entry
    except OSError as error:
        raise UsageError(f"--texts {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--texts {path} is not UTF-8 text; save it as UTF-8") from error
    if not found:
        raise UsageError(f"--texts {path} holds no sentence; write one a line")


def _text_lines(path: Path, of_class: OfClass | None) -> Iterator[Iterable[str]]:
    # Not universal newlines: a line ends at "\n" alone, as in every tool that counts lines.
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            yield (line,)


def _json_lines(path: Path, of_class: OfClass | None) -> Iterator[Iterable[str]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _of_json(line, f"--texts {path} line {number}", of_class)


def _of_json(line: str, where: str, of_class: OfClass | None) -> Iterable[str]:
    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    if isinstance(value, dict):
        if isinstance(value.get("class"), str) and of_class is not None:
            return of_class(value["class"])
        value = next((value[name] for name in COLUMNS if name in value), None)
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{where} holds half a character ({error.object[error.start]!r}), which no "
                "text can: leave the line out"
            ) from error
        return texts
    raise UsageError(
        f'{where}: {line.strip()[:60]!r} is no sentence; write "a sentence", ["several", "of '
        'them"] or {"text": ...}'
    )


def _csv_rows(path: Path, of_class: OfClass | None) -> Iterator[Iterable[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = csv.reader(file, strict=True)
            column = _column(path, next(rows, []))
            for row in rows:
                yield row[column : column + 1]
        except csv.Error as error:
            raise UsageError(f"--texts {path} cannot be read as CSV: {error}") from error


def _parquet_rows(path: Path, of_class: OfClass | None) -> Iterator[Iterable[str]]:
    try:
        with closing(pq.ParquetFile(path)) as file:
            names = file.schema_arrow.names
            name = names[_column(path, names)]
            for part in file.iter_batches(_ROWS, columns=[name]):
                for value in part.column(0).to_pylist():
                    several = value if isinstance(value, list) else [value]
                    yield [str(text) for text in several if text is not None]
    except pa.ArrowException as error:
        raise UsageError(f"--texts {path} cannot be read as Parquet: {error}") from error


def _column(path: Path, names: Sequence[str]) -> int:
    """Return the place of the column with the sentences."""
    plain = [name.strip().lower() for name in names]
    found = [plain.index(name) for name in COLUMNS if name in plain]
    if not found:
        raise UsageError(
            f"--texts {path} has no column {', '.join(COLUMNS[:-1])} or {COLUMNS[-1]} (it has: "
            f"{', '.join(names) or 'none'})"
        )
    return found[0]
