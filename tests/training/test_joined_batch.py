"""Methods that compare images on two processes: loss and gradients of one with the joined batch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from joined_run import CASES, add_sentences, gradients
from safetensors.torch import load_file


def test_loss_and_gradients_on_two_ranks_equal_one(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    add_sentences(folder / "store")
    script = Path(__file__).with_name("joined_run.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launch, str(script), str(folder), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
    )
    one = gradients(folder, batch_size=6, text_batch=10)
    ranks = [load_file(tmp_path / f"two-{rank}.safetensors") for rank in (0, 1)]
    for case in CASES:
        assert sum(key.startswith(f"{case.name}: student.") for key in one) > 10
        assert one[f"{case.name}: loss"] != 0
        if case.method != "dime-fm":
            assert one[f"{case.name}: class_features.rows"].abs().sum() > 0
    for two in ranks:
        assert two.keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=key)
