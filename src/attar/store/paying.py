"""Let a store pay for what a remote teacher is asked; other teachers cost nothing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attar.files import check_writable
from attar.store.config import EmbedConfig
from attar.store.ledger import Ledger
from attar.store.writer import CommitGuard, refuse_foreign_folder
from attar.teachers.base import Teacher
from attar.teachers.remote import as_remote
from attar.teachers.remote_asking import Pace

log = logging.getLogger(__name__)


@contextmanager
def paid_by(store: Path, teacher: Teacher, config: EmbedConfig) -> Iterator[CommitGuard | None]:
    """Let `teacher` be asked inside the block, at the cost of `store`.

    Yields what the store's writer must ask before it commits, None for a teacher that is here.
    UsageError when the folder is no place for a store.
    """
    remote = as_remote(teacher)
    if remote is None:
        yield None
        return
    check_writable(store)
    refuse_foreign_folder(store)
    ledger = Ledger(store, config.query_limit)
    before = ledger.paid_queries
    remote.bind(ledger, pace_of(config))
    try:
        yield remote
    finally:
        remote.unbind()
        if ledger.paid_queries > before:
            log.info("%s", spent_line(ledger, before, config))


def pace_of(config: EmbedConfig) -> Pace:
    """Return how fast a remote teacher is asked."""
    return Pace(
        request_size=config.request_size,
        parallel=config.parallel,
        rate=config.rate,
        attempts=config.attempts,
        backoff=config.backoff,
        timeout=config.timeout,
    )


def spent_line(ledger: Ledger, before: int, config: EmbedConfig) -> str:
    """Return what was just paid and what the store paid in all, in one line."""
    now = ledger.paid_queries - before
    amounts = [now, ledger.paid_queries]
    money = [f" ({n * config.price:,.4g})" if config.price else "" for n in amounts]
    unsure = f", {ledger.unsure:,} more without an answer" if ledger.unsure else ""
    return (
        f"paid {now:,} queries{money[0]}; {ledger.paid_queries:,}{money[1]} in the life of "
        f"{ledger.place}{unsure}"
    )
