"""Two processes with half a batch each train as one with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from small_run import run_together
from tests.cli.processes import START


def test_two_ranks_equal_one_with_the_joined_batch(images: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("small_run.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launch, str(script), str(images), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=START,
    )
    run_together(images, tmp_path / "one", batch_size=8)
    for file in ("student/model.safetensors", "objective.safetensors"):
        one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=name)
