"""`torchrun -m attar embed`: processes share the images of one store, and may be killed."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from tests.cli import killable
from tests.cli.commands import Give, World
from tests.data.tars import write_tars

from attar.store.parts import PARTS, part_of
from attar.store.store import Store
from attar.store.verify import check_files

WORLD = 2
IMAGES, BATCH, SHARD = 48, 2, 4


class Together:
    """Starts a command as torchrun does: one process a rank, which find each other by a port."""

    def __init__(self, folder: Path) -> None:
        self.log, self.screen = folder / "asked.log", folder / "screen"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.cli.killable"])
        self._started: list[BaseProcess] = []

    def start(self, words: list[str], pause: float = 0.0) -> list[BaseProcess]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(WORLD):
            launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD}
            launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, killable.PAUSE: pause}
            plain = {name: str(value) for name, value in launched.items()}
            arguments = (words, self.log, self.screen, plain)
            ranks.append(self._context.Process(target=killable.run_rank, args=arguments))
            ranks[-1].start()
        self._started += ranks
        return ranks

    def finish(self, words: list[str]) -> None:
        for process in self.start(words):
            process.join()
            assert process.exitcode == 0, self.screen.read_text()

    def kill(self, processes: list[BaseProcess]) -> None:
        for process in processes:
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            process.join()

    def clean_up(self) -> None:
        self.kill(self._started)


@pytest.fixture
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Together]:
    # The server of forks finds this folder through the environment.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    one = Together(tmp_path)
    yield one
    one.clean_up()


def test_processes_share_a_store_and_are_killed_and_go_on(
    give: Give, world: World, tmp_path: Path, together: Together
) -> None:
    write_tars(tmp_path / "tars", tars=3, each=16)
    plain = ["embed", f"--data={tmp_path / 'tars'}", f"--teacher={world.teacher}", "--unlabelled"]
    plain += [f"--classes={world.classes}", f"--batch-size={BATCH}", f"--shard-rows={SHARD}"]
    plain += ["--workers=0"]
    known = killable.pictures(world.teacher, tmp_path / "tars")
    store = tmp_path / "store"
    part, words = part_of(store, 1), [*plain, f"--out={store}"]

    first = together.start(words, pause=0.5)
    while len(killable.committed(part)) < 2 * SHARD or not killable.committed(store):
        assert all(process.exitcode is None for process in first), together.screen.read_text()
        time.sleep(0.01)
    together.kill(first[::-1])
    own, others = killable.committed(store), killable.committed(part)
    kept, asked = {*own, *others}, killable.asked(together.log, known)
    assert len(own) + len(others) == len(kept) < IMAGES
    assert len(set(asked) - kept) <= WORLD * (SHARD + BATCH)

    together.finish(words)
    again = killable.asked(together.log, known)[len(asked) :]
    assert sorted(again) == sorted(set(known.values()) - kept), "what was committed is kept"
    assert not (store / PARTS).exists()
    assert check_files(store) == ()
    assert sorted(killable.committed(store)) == sorted(known.values())

    assert give(*plain, "--out", tmp_path / "alone").status == 0
    alone, shared = Store.open(tmp_path / "alone"), Store.open(store)
    keys = [key for some in alone.iterate_images(IMAGES) for key in some.keys]
    one, other = (s.image_features(s.image_rows(keys)).astype(float) for s in (alone, shared))
    np.testing.assert_allclose(one, other, atol=2e-3)
    assert shared.num_texts == alone.num_texts > 0


def test_rows_stand_in_the_order_of_the_tars_and_only_what_lacks_is_asked(
    world: World, tmp_path: Path, together: Together
) -> None:
    write_tars(tmp_path / "tars", tars=3, each=5)
    words = ["embed", f"--data={tmp_path / 'tars'}", f"--teacher={world.teacher}", "--unlabelled"]
    words += [f"--batch-size={BATCH}", f"--shard-rows={SHARD}", f"--out={tmp_path / 'store'}"]
    together.finish([*words, "--workers=1"])
    known = killable.pictures(world.teacher, tmp_path / "tars")
    assert killable.committed(tmp_path / "store") == sorted(known.values())
    together.finish([*words, "--workers=0", "--views=1", "--view-size=32"])
    info = Store.open(tmp_path / "store").info
    assert info.counts["images"] == {"clean": 15, "domainbed-32-0": 15}
    assert sorted(killable.asked(together.log, known)) == sorted(known.values())
