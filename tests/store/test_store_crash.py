"""kill -9 at random moments loses nothing that was committed and asks nothing of it again."""

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
from tests.store import killable

from attar.data.images import read_image
from attar.data.table import ImageTable
from attar.store.embed import embed_images
from attar.store.store import Store
from attar.store.verify import check_files

KILLS = 10
IMAGES = 320
IN_FLIGHT = killable.CONFIG.shard_rows + killable.CONFIG.batch_size


class Run:
    """A store that is filled by processes that may die."""

    def __init__(self, folder: Path, table: ImageTable, context: ForkServerContext) -> None:
        self.table = table
        self.store = folder / "store"
        self._log = folder / "asked.log"
        self._saved = folder / "table.parquet"
        self._context = context
        table.save(self._saved)
        self._row_of = {
            killable.picture_hash(killable.prepare(read_image(file))): row
            for row, file in enumerate(table.paths)
        }

    def start(self) -> multiprocessing.process.BaseProcess:
        process = self._context.Process(
            target=killable.run, args=(self._saved, self.store, self._log)
        )
        process.start()
        return process

    def asked(self) -> list[int]:
        """Return the rows that the teacher was asked, in order."""
        if not self._log.exists():
            return []
        return [self._row_of[line] for line in self._log.read_text().splitlines()]

    def committed(self) -> set[int]:
        if not (self.store / "store.json").exists():
            return set()
        held = Store.open(self.store).has_images(self.table.keys)
        return set(np.flatnonzero(held).tolist())


@pytest.fixture
def run(
    tmp_path: Path, make_table: Callable[..., ImageTable], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    # The server of forks imports torch once; it finds this folder through the environment.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.store.killable"])
    yield Run(tmp_path, make_table(IMAGES), context)
    for process in multiprocessing.active_children():
        process.kill()


def test_killed_at_random_moments_it_ends_in_the_same_store(run: Run, tmp_path: Path) -> None:
    moments = random.Random(0)
    killed = 0
    for _ in range(KILLS):
        kept, asked_before = run.committed(), len(run.asked())
        process = run.start()
        until = asked_before + moments.randint(0, 20)
        while process.is_alive() and len(run.asked()) < until:
            process.join(0.001)
        process.join(moments.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        asked = set(run.asked()[asked_before:])
        assert not asked & kept, "asked again for what was committed"
        assert len(asked - run.committed()) <= IN_FLIGHT
        assert run.committed() >= kept
        assert not (run.store / "store.json").exists() or check_files(run.store) == ()
    assert killed == KILLS
    last = run.start()
    last.join()
    assert last.exitcode == 0
    assert run.committed() == set(range(IMAGES))
    assert len(run.asked()) <= IMAGES + KILLS * IN_FLIGHT
    assert not list(run.store.rglob("*.partial"))
    store = Store.open(run.store)
    assert store.num_images == IMAGES
    teacher = killable.LoggingTeacher(tmp_path / "other.log")
    whole = Store.open(embed_images(teacher, run.table, tmp_path / "whole", killable.CONFIG))
    keys = run.table.keys
    a, b = (one.image_features(one.image_rows(keys)).astype(np.float32) for one in (store, whole))
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_killed_writer_gives_its_lock_back_at_once(run: Run, tmp_path: Path) -> None:
    # The reading worker outlives a killed parent for some seconds and must not hold the lock.
    process = run.start()
    while process.is_alive() and not run.asked():
        process.join(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    teacher = killable.LoggingTeacher(tmp_path / "other.log")
    embed_images(teacher, run.table, run.store, killable.CONFIG)
    assert run.committed() == set(range(IMAGES))
