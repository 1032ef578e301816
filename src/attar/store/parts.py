"""Several processes fill one store: each writes a part of its own, and the store takes them over.

A part is a whole store in STORE/.parts/RANK with a lock of its own. Its committed shards become the
store's by a second link to the same files, listed in store.json at once; only then is the part
removed. So a kill at any moment loses no committed row and takes none twice.
"""

import shutil
from pathlib import Path

from attar.files import read_json, write_json
from attar.store.layout import check_dtype, check_teacher
from attar.store.store import Store
from attar.store.writer import StoreWriter, store_lock
from attar.teachers.base import TeacherInfo

PARTS = ".parts"
SET_ASIDE = "set_aside.json"
"""In a store: [{path, reason}] of files that could not be read or prepared."""


def part_of(store: Path, rank: int) -> Path:
    """Return where a process writes: the first one to the store itself."""
    return store / PARTS / str(rank) if rank else store


def has_parts(store: Path) -> bool:
    """Whether processes wrote to parts that the store has not taken over."""
    return (store / PARTS).is_dir()


def adopt_parts(store: Path, teacher: TeacherInfo, dtype: str) -> None:
    """Take over what processes wrote to parts, also those of a run that was killed.

    UsageError when the store or a part is being written, or holds another teacher's embeddings.
    """
    if not has_parts(store):
        return
    with StoreWriter.open(store, teacher, dtype) as writer:
        for part in sorted((store / PARTS).iterdir(), key=lambda one: (len(one.name), one.name)):
            if (part / "store.json").is_file():
                with store_lock(part):
                    info = Store.open(part).info
                    check_teacher(part, info.teacher, teacher)
                    check_dtype(part, info.dtype, dtype)
                    writer.adopt(part, info)
                    _adopt_set_aside(store, part)
            shutil.rmtree(part)
        (store / PARTS).rmdir()


def _adopt_set_aside(store: Path, part: Path) -> None:
    if not (part / SET_ASIDE).exists():
        return
    file = store / SET_ASIDE
    entries = {one["path"]: one for one in (read_json(file) if file.exists() else [])}
    entries |= {one["path"]: one for one in read_json(part / SET_ASIDE)}
    write_json(file, list(entries.values()))
