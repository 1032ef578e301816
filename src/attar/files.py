"""Files that are either whole or absent: atomic writes, checksums and space checks."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from attar.errors import AttarError, UsageError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it over `target` when the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def abandoned(partial: Path) -> bool:
    """Whether no other process of this machine writes a temporary file of `atomic_path` any more.

    One with this process's number is of a dead one that had it, as in containers.
    """
    process = partial.name.split(".")[-2]
    if os.name != "posix" or process == str(os.getpid()):
        return True
    try:
        os.kill(int(process), 0)  # sends nothing
    except PermissionError:  # it is there, and another user's
        return False
    except (ValueError, OverflowError, ProcessLookupError):
        return True
    return False


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; rename it when the block succeeds.

    An existing `target` is moved aside first, so at every moment a whole folder of one of the two
    names exists; `recover_folder` puts the old one back after a crash between the two renames.
    Who writes the same folder at the same time waits.
    """
    temporary, old = _sibling(target, "partial"), _sibling(target, "old")
    with alone(target):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            _open_to_readers(temporary)
            recover_folder(target)
            if target.exists():
                target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Hold a lock beside `target` that leaves nothing behind; others wait for it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    file = _sibling(target, "lock")
    with FileLock(file):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps a file that is open
                file.unlink()  # while it is held: who waits sees that it is gone and makes another


def _open_to_readers(folder: Path) -> None:
    """Give files the modes that a plain open() would: some libraries write for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def recover_folder(target: Path) -> None:
    """Finish or undo a folder replacement that a crash interrupted."""
    old = _sibling(target, "old")
    if old.exists():
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)


def _sibling(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(target: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the given order."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a broken one is an error that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AttarError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Return the sha256 of the exact string (UTF-8) in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_writable(folder: Path, needed_bytes: int = 0) -> None:
    """Refuse a place that cannot be written to or has too little space, before work begins."""
    existing = folder
    while not _is_there(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise UsageError(f"{existing} is a file, not a folder; choose another place for {folder}")
    if not (os.access(existing, os.W_OK) and os.access(existing, os.X_OK)):
        raise UsageError(f"no permission to write in {existing}; choose another place for {folder}")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise UsageError(
            f"{folder} needs {needed_bytes / 1e6:,.0f} MB but {existing} has {free / 1e6:,.0f} MB "
            "free; free some space or choose another place"
        )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # of the folder around it, which is then looked at next
        return False
