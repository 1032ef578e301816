"""Kill `attar embed` and `attar distill` with SIGKILL at random moments and give them again.

    python scripts/kill_test.py --kills 10
    python scripts/kill_test.py --kills 10 --tars

With --tars the images stand in tars of 50 and training reads them shard by shard, so that nearly
every moment is in the middle of a shard.

Every command is a whole process that dies at once, its reading worker left to itself. Half of the
moments fall anywhere in the command, start-up included, the others in its working part. A command
that ends before it was killed often enough begins again in a new folder. Prints one JSON object:
how often each was killed and in which stage, how often the teacher was asked, and whether every
folder ended as the unbroken one did, bit by bit. Exit status 1 when one did not.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.cli import killable  # noqa: E402
from tests.cli.commands import save_image  # noqa: E402
from tests.data.tars import write_tars  # noqa: E402
from tests.doubles import make_openclip_folder  # noqa: E402

BATCH, SHARD = 8, 32
IN_FLIGHT = BATCH + SHARD
IN_A_TAR = 50
STAGES = {
    "embed": ("shards", "files.parquet", "store.json", "img_emb", "text_emb"),
    "distill": (
        "config.yaml",
        "store/store.json",
        "references/projection-only",
        "checkpoints/last",
        "student",
        "results.jsonl",
    ),
}
"""What a command leaves behind, in order: how far it had come when it was killed."""


@dataclass(frozen=True)
class Command:
    """A command to kill."""

    name: str
    words: Sequence[str]
    works: str
    """A file below its output that each start writes when its work begins, "" for the log."""
    same: Callable[[Path, Path], None]
    store: str
    """Its store below the output, "" when that is the output."""


@dataclass
class Tally:
    """What happened to a command."""

    kills: int = 0
    rounds: int = 0
    asked: int = 0
    asked_again: int = 0
    most_lost_by_a_kill: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)


@contextlib.contextmanager
def started(words: Sequence[str], log: Path, screen: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a group of its own; on leaving, all of the group is dead."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
    with screen.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.killable", str(log), *words],
            stdout=file,
            stderr=file,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def sign_of_work(command: Command, out: Path, log: Path) -> Path:
    return out / command.works if command.works else log


def wait_for_work(process: subprocess.Popen[bytes], sign: Path, before: int) -> None:
    while process.poll() is None and stamp(sign) == before:
        time.sleep(0.01)


def whole(command: Command, out: Path, log: Path) -> tuple[float, float]:
    """Let a command end; return its seconds and those of its working part."""
    sign = sign_of_work(command, out, log)
    began, before = time.monotonic(), stamp(sign)
    screen = out.with_suffix(".screen")
    with started([*command.words, f"--out={out}"], log, screen) as process:
        wait_for_work(process, sign, before)
        worked = time.monotonic()
        if process.wait() != 0:
            sys.exit(screen.read_text())
    return time.monotonic() - began, time.monotonic() - worked


def stage(command: Command, out: Path) -> str:
    there = [name for name in STAGES[command.name] if (out / name).exists()]
    return f"after {there[-1]}" if there else "before anything"


def kill_again_and_again(
    command: Command, folder: Path, known: dict[str, str], kills: int, seed: int
) -> Tally:
    log, tally, moments = folder / f"{command.name}.log", Tally(), random.Random(seed)
    unbroken = folder / f"{command.name}-unbroken"
    seconds, working = whole(command, unbroken, folder / "unbroken.log")
    while tally.kills < kills:
        out = folder / f"{command.name}-{tally.rounds}"
        while True:
            asked_before = len(killable.asked(log, known))
            held = set(killable.committed(out / command.store))
            if tally.kills == kills:
                whole(command, out, log)
                is_killed = False
            else:
                is_killed = kill_once(command, out, log, moments, (seconds, working))
            asked = killable.asked(log, known)[asked_before:]
            lost = set(asked) - set(killable.committed(out / command.store))
            tally.asked += len(asked)
            tally.asked_again += len(set(asked) & held)
            tally.most_lost_by_a_kill = max(tally.most_lost_by_a_kill, len(lost))
            if not is_killed:
                break
            tally.kills += 1
            tally.stages[stage(command, out)] += 1
        tally.rounds += 1
        try:
            command.same(unbroken, out)
        except AssertionError as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            tally.differences.append(f"{out.name}: {line} {error}")
    return tally


def kill_once(
    command: Command, out: Path, log: Path, moments: random.Random, times: tuple[float, float]
) -> bool:
    """Kill a command at a random moment; False when it had ended by then."""
    seconds, working = times
    anywhere = moments.random() < 0.5
    sign = sign_of_work(command, out, log)
    before = stamp(sign)
    words = [*command.words, f"--out={out}"]
    with started(words, log, out.with_suffix(".screen")) as process:
        if not anywhere:
            wait_for_work(process, sign, before)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Early moments are likelier, so that one folder is killed several times.
            process.wait(moments.random() ** 2 * (seconds if anywhere else working))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        if process.returncode != 0:
            sys.exit(out.with_suffix(".screen").read_text())
    return False


def commands(folder: Path, data: Path, teacher: str, asked: argparse.Namespace) -> list[Command]:
    shards = {"batch-size": BATCH, "shard-rows": SHARD, "workers": 1}
    common = [
        "--unlabelled",
        f"--data={data}",
        f"--classes={folder / 'classes.txt'}",
        f"--teacher={teacher}",
    ]
    embed = ["embed", *common, *(f"--{name}={value}" for name, value in shards.items())]
    distill = ["distill", *common, *(f"--embed.{name}={value}" for name, value in shards.items())]
    distill += ["--method=feature-mse", "--student=mobilenetv3_small_050", "--student.weights=none"]
    distill += ["--student.image-size=64", "--training.precision=fp32", "--training.batch-size=16"]
    distill += [f"--training.steps={asked.steps}", "--training.workers=1", "--training.log-every=5"]
    distill += ["--training.checkpoint-every=10", "--training.validate-every=20"]
    distill += ["--training.selection=best", "--evaluation.workers=1"]
    distill += ["--training.sampler=shards"] if asked.tars else []
    return [
        Command("embed", embed, "", killable.assert_same_store, ""),
        Command("distill", distill, "environment.json", killable.assert_same_run, "store"),
    ]


def make_images(folder: Path, count: int, tars: bool) -> Path:
    """Make the images of a test and return what to give as --data."""
    if tars:
        write_tars(folder / "tars", tars=-(-count // IN_A_TAR), each=IN_A_TAR)
        return folder / "tars" / "data-*.tar"
    for number in range(count):
        save_image(folder / "images" / f"{number:04}.png", number)
    return folder / "images"


def report(tally: Tally, kills: int, images: int) -> dict[str, Any]:
    allowed = images * tally.rounds + tally.kills * IN_FLIGHT
    fine = tally.kills == kills and tally.asked <= allowed and tally.asked_again == 0
    fine = fine and tally.most_lost_by_a_kill <= IN_FLIGHT and not tally.differences
    return {
        "kills": tally.kills,
        "killed": dict(tally.stages),
        "folders": tally.rounds,
        "images": images,
        "asked": tally.asked,
        "asked_again_though_committed": tally.asked_again,
        "most_lost_by_a_kill": tally.most_lost_by_a_kill,
        "in_flight_at_most": IN_FLIGHT,
        "same_result": not tally.differences,
        "differences": tally.differences,
        "ok": fine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--tars", action="store_true", help="images in tars")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="attar-kill-") as name:
        folder = Path(name)
        data = make_images(folder, asked.images, asked.tars)
        (folder / "classes.txt").write_text("cat\ndog\nhorse\n")
        make_openclip_folder(folder / "teacher", embed_dim=64, image_size=192)
        teacher = f"local-dir:{folder / 'teacher'}"
        known = killable.pictures(teacher, data)
        summary = {}
        for command in commands(folder, data, teacher, asked):
            tally = kill_again_and_again(command, folder, known, asked.kills, asked.seed)
            summary[command.name] = report(tally, asked.kills, len(known))
    print(json.dumps(summary, indent=2))
    sys.exit(not all(part["ok"] for part in summary.values()))


if __name__ == "__main__":
    main()
