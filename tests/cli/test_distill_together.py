"""`torchrun -m attar distill`: three processes, one of which asks, writes, exports and speaks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.commands import FAST, World
from tests.cli.processes import START

from attar.runtime.bundle import Bundle

RANKS = 3


@pytest.mark.parametrize("method", ["feature-mse", "li2023"])  # the second contrasts all images
def test_processes_distil_and_one_of_them_exports(
    method: str, world: World, tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = ["--data", world.domains, "--teacher", world.teacher, *FAST]
    words += [f"--method={method}", "--export", "--out", tmp_path / "run"]
    done = subprocess.run(
        [*launch, f"--nproc_per_node={RANKS}", "-m", "attar", "distill", *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=START,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count(str(tmp_path / "run")) == 1
    assert Bundle.open(tmp_path / "run" / "bundle").labels.texts == ("cat", "dog")
    assert not list((tmp_path / "run").glob(".bundle*"))
