"""kill -9 at random moments of real commands: given again, they end in the same result.

`scripts/kill_test.py` does the same with ten kills of whole processes each.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from tests.cli import killable
from tests.cli.commands import FAST, World, save_image
from tests.data.tars import write_tars

KILLS = 3
LONG = 300.0
"""Seconds in which any command here ends by itself."""
SHARD, BATCH = 8, 4


class Killer:
    """Starts a command again and again and kills it, until it has been killed often enough."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "asked.log"
        self._groups: list[int] = []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.cli.killable"])

    def start(self, words: Sequence[object]) -> BaseProcess:
        process = self._context.Process(
            target=killable.run,
            args=([str(word) for word in words], self.log, self.folder / "screen"),
        )
        process.start()
        self._groups.append(process.pid)
        return process

    def finish(self, words: Sequence[object]) -> float:
        """Let a command end; return its seconds."""
        began = time.monotonic()
        process = self.start(words)
        process.join()
        assert process.exitcode == 0, (self.folder / "screen").read_text()
        return time.monotonic() - began

    def killed(self, words: Sequence[object], seconds: float) -> bool:
        """Kill a command after some seconds; False when it had ended by itself."""
        process = self.start(words)
        process.join(seconds)
        if process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert process.exitcode in (0, -signal.SIGKILL), (self.folder / "screen").read_text()
        return process.exitcode != 0

    def clean_up(self) -> None:
        """Leave no process behind, reading workers of the killed ones included."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


@pytest.fixture
def killer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Killer]:
    # The server of forks finds this folder through the environment.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    one = Killer(tmp_path)
    one.finish(["--version"])  # the server has imported everything, so that times are of the work
    yield one
    one.clean_up()


@pytest.fixture(scope="module")
def many(world: World) -> dict[str, Path]:
    """Enough images that embedding them takes a moment, in a folder and in tars."""
    for number in range(120):
        save_image(world.root / "many" / f"{number:03}.png", 300 + number)
    write_tars(world.root / "tars", tars=5, each=24, first_seed=300)
    return {"folder": world.root / "many", "tars": world.root / "tars" / "data-{000..004}.tar"}


@pytest.mark.parametrize(("data", "workers"), [("folder", 0), ("folder", 1), ("tars", 1)])
def test_embed_killed_at_random_moments(
    killer: Killer, world: World, many: dict[str, Path], tmp_path: Path, data: str, workers: int
) -> None:
    words = [
        "embed",
        "--unlabelled",
        f"--data={many[data]}",
        f"--classes={world.classes}",
        f"--teacher={world.teacher}",
    ]
    words += [f"--batch-size={BATCH}", f"--shard-rows={SHARD}", f"--workers={workers}"]
    known = killable.pictures(world.teacher, many[data])
    assert len(known) == 120
    seconds = killer.finish([*words, f"--out={tmp_path / 'whole'}"])
    assert len(killable.asked(killer.log, known)) == len(known)
    moments, kills, round_ = random.Random(workers), 0, 0
    while kills < KILLS:
        store = tmp_path / f"store-{round_}"
        is_killed = True
        while is_killed:
            before = set(killable.committed(store))
            asked_before = len(killable.asked(killer.log, known))
            moment = moments.uniform(0, seconds) if kills < KILLS else LONG
            is_killed = killer.killed([*words, f"--out={store}"], moment)
            kills += is_killed
            asked = killable.asked(killer.log, known)[asked_before:]
            assert not set(asked) & before, "asked again for what was committed"
            assert len(set(asked) - set(killable.committed(store))) <= SHARD + BATCH
        killable.assert_same_store(tmp_path / "whole", store)
        round_ += 1


@pytest.mark.parametrize(("tars", "workers"), [(False, 0), (False, 1), (True, 1)])
def test_distill_killed_at_random_moments(
    killer: Killer, world: World, tmp_path: Path, tars: bool, workers: int
) -> None:
    data = world.flat
    if tars:  # their ends lie in the middle of batches and epochs
        write_tars(tmp_path / "tars", tars=5, each=5)
        data = tmp_path / "tars"
    words = ["distill", f"--data={data}", f"--classes={world.classes}", "--unlabelled"]
    words += ["--training.sampler=shards"] if tars else []
    words += [f"--teacher={world.teacher}", "--method=feature-mse", "--training.steps=12"]
    words += [*FAST[2:], f"--training.workers={workers}", f"--embed.workers={workers}"]
    words += ["--training.batch-size=4", "--training.log-every=1", "--training.validate-every=4"]
    words += ["--training.checkpoint-every=3", "--training.selection=best", "--training.ema=0.9"]
    words += [f"--embed.batch-size={BATCH}", f"--embed.shard-rows={SHARD}"]
    known = killable.pictures(world.teacher, data)
    whole = tmp_path / "whole"
    seconds = killer.finish([*words, f"--out={whole}"])
    moments, kills, round_ = random.Random(workers), 0, 0
    while kills < KILLS:
        run = tmp_path / f"run-{round_}"
        asked_before = len(killable.asked(killer.log, known))
        in_round, is_killed = 0, True
        while is_killed:
            moment = moments.uniform(0, seconds) if kills < KILLS else LONG
            is_killed = killer.killed([*words, f"--out={run}"], moment)
            kills, in_round = kills + is_killed, in_round + is_killed
        killable.assert_same_run(whole, run)
        asked = len(killable.asked(killer.log, known)) - asked_before
        assert asked <= len(known) + in_round * (SHARD + BATCH)
        round_ += 1
