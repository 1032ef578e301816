"""Cells side by side: a process each, a share of the cores, a log, and no orphan."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from attar.device import usable_cores
from attar.files import atomic_path
from attar.run import RunConfig, plain_options

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One cell to run."""

    name: str
    config: RunConfig
    run: Path
    command: str
    known_files: Path | None = None
    """What the grid found when it read every image; the cell then need not decode them again."""

    @property
    def log(self) -> Path:
        """Where all that the cell's process says is kept, beside its run folder."""
        return self.run.with_name(f"{self.run.name}.log")

    def prepare(self) -> None:
        """Put what is known about the image files where the run looks for it."""
        if self.known_files is None or not self.known_files.is_file():
            return
        target = self.run / self.known_files.name
        if not target.exists():
            self.run.mkdir(parents=True, exist_ok=True)
            try:
                target.hardlink_to(self.known_files)  # it is replaced, never written into
            except OSError:
                with atomic_path(target) as temporary:
                    shutil.copyfile(self.known_files, temporary)


def run_tasks(tasks: Sequence[Task], jobs: int, ended: Callable[[Task, str], None]) -> None:
    """Run all tasks, `jobs` at once; call `ended(task, what went wrong or "")` as each one ends.

    When this process ends before they do, by whatever signal, they end with it; their run folders
    go on from there when the grid is started again.
    """
    waiting, running = deque(tasks), dict[str, tuple[Task, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                running[task.name] = (task, _start(task, jobs))
            over = [name for name, (_, child) in running.items() if child.poll() is not None]
            for name in over:
                task, child = running.pop(name)
                ended(task, _what_went_wrong(task, child.returncode))
            if not over:
                time.sleep(_POLL_SECONDS)
    finally:
        for _, child in running.values():
            _stop(child)


def threads_of_each(jobs: int) -> int:
    """Return the threads of one of several processes; fewer where the user wants fewer."""
    share = max(1, usable_cores() // jobs)
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(wanted)) if wanted.isdecimal() and int(wanted) else share


def _start(task: Task, jobs: int) -> subprocess.Popen[bytes]:
    task.log.parent.mkdir(parents=True, exist_ok=True)
    task.prepare()
    threads = str(threads_of_each(jobs))
    with task.log.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "attar.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )
    request = {
        "options": plain_options(task.config),
        "run": str(task.run),
        "command": task.command,
    }
    try:
        _stdin(child).write(json.dumps(request).encode() + b"\n")
        _stdin(child).flush()
    except BrokenPipeError:
        pass  # it died at once; its exit status and its log say why
    return child


def _stdin(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdin is not None
    return child.stdin


def _what_went_wrong(task: Task, status: int) -> str:
    """Return the log's last line when the cell failed."""
    if status == 0:
        return ""
    lines = task.log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    killed = f"killed by signal {-status}" if status < 0 else ""
    if -status == signal.SIGKILL:
        killed += ", as the system does when memory runs out: try fewer --jobs"
    return f"{killed or (said or ['it said nothing'])[-1]} (log: {task.log})"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a cell's process: closing its pipe is enough, killing it the last resort."""
    try:
        _stdin(child).close()
        child.wait(_GRACE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        child.kill()
        child.wait()
