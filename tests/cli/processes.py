"""Commands in processes of their own, which may be interrupted or killed; none is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

START = 600.0
"""Seconds that no command takes to get somewhere, however busy the machine is."""


@contextlib.contextmanager
def command(*words: object, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `attar WORDS` in a process group of its own; on leaving, all of the group is dead.

    stdout and stderr go to files in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "attar", *map(str, words)],
            stdout=out,
            stderr=err,
            text=True,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        kill_group(process.pid)
        process.wait()


def kill_group(leader: int) -> None:
    """Kill (SIGKILL) a process and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def wait_until(
    true: Callable[[], bool], process: subprocess.Popen[str], seconds: float = START
) -> None:
    """Wait until something is so; fails when the process ends first or takes too long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"it ended with {process.returncode} too early"
        assert time.monotonic() < deadline, "it got nowhere"
        time.sleep(0.02)
