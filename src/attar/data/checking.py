"""Every file is read once: its sha256 is its key, and a full decode proves it is an image."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from attar.data.images import decode_image
from attar.errors import AttarError
from attar.files import atomic_path
from attar.members import Member, is_url, read_bytes

_CHUNK = 1024
_SHOW_PROGRESS_FROM = 500
_SAVE_EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Checked:
    """What reading one file showed."""

    key: str
    """sha256 of the bytes in hex, empty for a file that cannot be read."""
    reason: str | None = None
    """Why the file cannot be read, None for a good one."""


_Stamp = tuple[str, int, int]  # path, size, mtime_ns: while they are the same, so is the file


def check_files(paths: Sequence[str], cache: Path | None = None) -> dict[str, Checked]:
    """Hash and decode files in threads; return what was found by path.

    Args:
        paths: absolute paths.
        cache: Parquet file of known good files; those whose size and modification time are
            unchanged are not read again. Broken files are always tried again.
    """
    known = _load_cache(cache)
    stamps = {path: _stamp(path) for path in paths}
    checked: dict[str, Checked] = {}
    for path, stamp in stamps.items():
        if stamp is not None and stamp in known:
            checked[path] = Checked(known[stamp])
    missing = [path for path in stamps if path not in checked]
    saved = monotonic()
    for path, result in _read_all(missing):
        checked[path] = result
        stamp = stamps[path]
        if stamp is not None and result.reason is None:
            known[stamp] = result.key
        if cache is not None and monotonic() - saved > _SAVE_EVERY_SECONDS:
            _save_cache(cache, known)
            saved = monotonic()
    if cache is not None and missing:
        _save_cache(cache, known)
    return checked


def check_file(path: str) -> Checked:
    """Hash and decode one file."""
    try:
        data = read_bytes(path)
    except OSError as error:
        return Checked("", error.strerror or str(error))
    try:
        decode_image(data)
    except AttarError as error:
        return Checked("", str(error))
    return Checked(hashlib.sha256(data).hexdigest())


def _read_all(paths: Sequence[str]) -> Iterator[tuple[str, Checked]]:
    workers = min(8, max(2, os.cpu_count() or 1))  # decoding and hashing release the GIL
    columns = (TextColumn("checking images"), BarColumn(), MofNCompleteColumn())
    progress = Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=len(paths) <= _SHOW_PROGRESS_FROM,
    )
    with progress, ThreadPoolExecutor(workers) as pool:
        task = progress.add_task("", total=len(paths))
        for start in range(0, len(paths), _CHUNK):  # a million waiting futures take gigabytes
            chunk = paths[start : start + _CHUNK]
            for pair in zip(chunk, pool.map(check_file, chunk), strict=True):
                yield pair
                progress.advance(task)


def _stamp(path: str) -> _Stamp | None:
    member = Member.parse(path)
    file = path if member is None else member.tar
    if is_url(file):
        return None
    try:
        status = Path(file).stat()
    except OSError:
        return None
    return path, status.st_size, status.st_mtime_ns


def _load_cache(cache: Path | None) -> dict[_Stamp, str]:
    if cache is None or not cache.exists():
        return {}
    try:
        columns = pq.read_table(cache).to_pydict()
        stamps = zip(columns["path"], columns["size"], columns["mtime_ns"], strict=True)
        return dict(zip(stamps, columns["sha256"], strict=True))
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a cache can always be made again


def _save_cache(cache: Path, known: dict[_Stamp, str]) -> None:
    paths, sizes, times = zip(*known, strict=True) if known else ((), (), ())
    table = pa.table(
        {
            "path": pa.array(paths, pa.string()),
            "size": pa.array(sizes, pa.int64()),
            "mtime_ns": pa.array(times, pa.int64()),
            "sha256": pa.array(known.values(), pa.string()),
        }
    )
    with atomic_path(cache) as temporary:
        pq.write_table(table, temporary)
