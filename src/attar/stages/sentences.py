"""Files of sentences for the teacher: read again and again as they are needed, never kept."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from attar.data.classes import ClassList
from attar.data.sentences import Entry, read_entries
from attar.errors import UsageError
from attar.files import check_writable
from attar.prompts import class_texts, get_templates
from attar.store.config import EmbedConfig
from attar.store.estimate import text_bytes
from attar.store.layout import check_dtype, check_teacher
from attar.store.missing import count_missing_texts
from attar.store.store import open_store
from attar.teachers.base import Teacher


def entries_of(path: Path, templates: str) -> Iterator[Entry]:
    """Yield the entries of a file, class names through the templates; see `read_entries`."""
    known = get_templates(templates)
    return read_entries(path, lambda name: class_texts(ClassList((name,), ((),)), known)[0])


def texts_of(path: Path, templates: str) -> Iterator[str]:
    """Yield every text of every entry of a file."""
    for entry in entries_of(path, templates):
        yield from entry


def check_texts(
    texts: Iterable[str], teacher: Teacher | None, store_path: Path, config: EmbedConfig
) -> int:
    """Return how many of the texts a store lacks; refuse them where they cannot be had.

    Raises:
        UsageError: they cannot be read; or some are missing, and there is no teacher to ask or too
            little space; or the store is another teacher's.
    """
    store = open_store(store_path)
    if teacher is not None and store is not None:
        check_teacher(store.path, store.info.teacher, teacher.info)
        check_dtype(store.path, store.info.dtype, config.dtype)
    missing = count_missing_texts(store, texts)
    if teacher is not None:
        check_writable(store_path, text_bytes(teacher.info, missing, config))
    elif missing:
        raise UsageError(
            f"store {store_path} lacks {missing:,} of the texts to learn from; give --teacher to "
            "ask for them"
        )
    return missing
