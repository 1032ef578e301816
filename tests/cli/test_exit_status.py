"""0 success, 1 failure, 2 wrong use, 130 interrupted: one line on stderr, tracebacks in the log."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.cli.commands import FAST, Give, World
from tests.cli.processes import START, command, wait_until

import attar
from attar.cli import main as cli

COMMANDS = (
    "distill",
    "embed",
    "evaluate",
    "export",
    "predict",
    "latency",
    "report",
    "demo",
    "store",
    "store info",
    "store verify",
    "store import",
    "bench",
    "bench domains",
)


def test_the_version_is_said(give: Give) -> None:
    outcome = give("--version")
    assert (outcome.status, outcome.out.strip()) == (0, attar.__version__)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_shows_an_example(give: Give, words: str) -> None:
    outcome = give(*words.split(), "--help")
    assert outcome.status == 0
    text = " ".join(outcome.out.split())
    _, _, example = text.partition("For example: ")
    assert example.startswith(f"attar {words} ") or example.startswith("attar demo"), text
    assert outcome.err == ""


def test_the_help_of_all_commands_lists_them(give: Give) -> None:
    outcome = give("--help")
    assert outcome.status == 0
    for words in COMMANDS:
        assert f" {words.split()[0]} " in outcome.out


def the_line(err: str) -> str:
    """Return the one line that says what failed; nothing like a traceback stands beside it."""
    lines = [line for line in err.splitlines() if line.startswith("attar: ")]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0]
    assert "Traceback" not in err
    return lines[0]


def go_on(run: Path) -> list[object]:
    (run / "done").unlink()
    return ["distill", f"--config={run / 'config.yaml'}", f"--out={run}"]


def test_a_failure_is_one_line_and_its_traceback_is_in_the_log(
    give: Give, copy_of_finished: Path
) -> None:
    checkpoint = copy_of_finished / "checkpoints" / "last" / "state.json"
    checkpoint.write_text("{")
    outcome = give(*go_on(copy_of_finished))
    assert outcome.status == 1
    assert str(checkpoint) in the_line(outcome.err)
    log = (copy_of_finished / "train.log").read_text()
    assert "Traceback" in log
    assert "JSONDecodeError" in log


def test_an_unforeseen_failure_says_where_its_traceback_is(
    give: Give, copy_of_finished: Path
) -> None:
    # Nobody foresees a folder where a file should be.
    (copy_of_finished / "metrics.jsonl").unlink()
    (copy_of_finished / "metrics.jsonl").mkdir()
    shutil.rmtree(copy_of_finished / "student")
    outcome = give(*go_on(copy_of_finished))
    assert outcome.status == 1
    line = the_line(outcome.err)
    assert "IsADirectoryError" in line
    log = copy_of_finished / "train.log"
    assert line.endswith(f"(traceback: {log})")
    assert "IsADirectoryError" in log.read_text()


def test_an_unforeseen_failure_outside_a_run_keeps_its_traceback_too(
    give: Give, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # A folder is where the answer should be written, which is found when it is.
    outcome = give("latency", bundle, "--runs=1", "--out", bundle)
    assert outcome.status == 1
    assert "IsADirectoryError" in the_line(outcome.err)
    (log,) = tmp_path.glob("attar-*.log")
    assert str(log) in outcome.err
    assert "Traceback" in log.read_text()


def test_a_damaged_bundle_is_a_failure(
    give: Give, world: World, bundle: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "bundle")
    with (damaged / "model.onnx").open("ab") as file:
        file.write(b"more")
    outcome = give("predict", damaged, world.flat)
    assert outcome.status == 1
    assert str(damaged / "model.onnx") in the_line(outcome.err)


def test_ctrl_c_is_one_line(world: World, tmp_path: Path) -> None:
    words = ["distill", "--data", world.flat, "--teacher", world.teacher, "--method=feature-mse"]
    words += ["--out", tmp_path / "run", *FAST[1:], "--training.workers=1"]
    words += ["--training.steps=100000", "--training.log-every=1", "--training.batch-size=4"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with command(*words, folder=tmp_path) as process:
        wait_until(lambda: metrics.is_file() and metrics.stat().st_size > 1000, process)
        os.killpg(process.pid, signal.SIGINT)  # a terminal tells the whole group
        assert process.wait(START) == 130
    err = (tmp_path / "err").read_text()
    assert the_line(err) == "attar: interrupted; run the same command again to go on"


INTERRUPTED = """
import multiprocessing, os, signal, sys, threading, time
from attar.cli import main

def deaf():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    told.put(os.getpid())
    time.sleep(10**6)

def a_worker_died(number, frame):  # as PyTorch has it
    raise RuntimeError("a worker was killed")

def command(*words, **options):
    for _ in range(4):
        multiprocessing.Process(target=deaf).start()
    with open("children", "w") as file:
        print(*(told.get() for _ in range(4)), file=file)
    threading.Thread(target=time.sleep, args=(10**6,)).start()
    signal.signal(signal.SIGCHLD, a_worker_died)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("numpy.core.multiarray failed to import")

multiprocessing.set_start_method("fork")
told = multiprocessing.SimpleQueue()
main.app = command
main.main(["distill"])
"""
"""Ctrl-C in an extension's import, with processes and a thread that nothing but SIGKILL ends."""


def test_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    assert done.stderr == "attar: interrupted; run the same command again to go on\n"
    assert done.returncode == 130
    children = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    assert len(children) == 4
    end = time.monotonic() + START
    while not all(map(is_over, children)):
        assert time.monotonic() < end
        time.sleep(0.05)


def is_over(pid: int) -> bool:
    """Say whether a process has ended, whether or not somebody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_memory_that_ran_out_is_one_line_with_the_way_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main(["embed", "--data", "photos"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert "memory ran out" in line
    assert "--embed.batch-size" in line
    log = Path(line.partition("traceback: ")[2].partition(")")[0])
    assert "Tried to allocate 20.00 MiB" in log.read_text()
    log.unlink()
