"""Predicting and measuring need numpy, pillow and onnxruntime alone."""

import json
import subprocess
import sys

import pytest

from attar.errors import UsageError
from attar.runtime.latency import measure_latency

_PREDICT = """
import sys
for name in ("torch", "torchvision", "timm", "open_clip", "safetensors", "rich", "yaml", "pyarrow",
             "cyclopts", "sklearn", "scipy", "matplotlib", "onnx"):
    sys.modules[name] = None  # an import of it fails
from pathlib import Path
import attar
from attar.runtime.config import PredictConfig
from attar.runtime.predict import run_predict
from attar.runtime.latency import measure_here
labels = Path(sys.argv[3]) if len(sys.argv) > 3 else None
run_predict(Path(sys.argv[1]), [Path(sys.argv[2])], PredictConfig(json=True, labels=labels))
assert measure_here(Path(sys.argv[1]), 1, 1, 1)["median_ms"] > 0
run_predict(Path(sys.argv[1]), [Path(sys.argv[2])], PredictConfig())
"""


def test_predict_and_latency_load_nothing_heavy(bundle_path, pictures, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("blue\nwhite\n")
    arguments = [str(bundle_path), str(pictures / "blue.png"), str(labels)]
    command = [sys.executable, "-c", _PREDICT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["label"] == "blue"


def test_latency_is_measured_in_a_process_of_its_own(bundle_path):
    result = measure_latency(bundle_path, threads=1, runs=5, batch=2)
    assert 0 < result["median_ms"] <= result["p90_ms"]
    assert result["images_per_s"] == pytest.approx(2000 / result["median_ms"])
    assert result["preprocess_ms"] > 0
    model = (bundle_path / "model.onnx").stat().st_size / 1e6
    assert result["model_mb"] == model < result["bundle_mb"]
    assert (result["threads"], result["runs"], result["batch"]) == (1, 5, 2)
    assert result["cpu"]
    if sys.platform == "linux":  # far below this process, which holds torch
        assert 20 < result["peak_rss_mb"] < 400


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"runs": 0}, {"batch": -1}])
def test_numbers_below_one_are_refused(bundle_path, wrong):
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))}"):
        measure_latency(bundle_path, **wrong)


def test_latency_of_no_bundle_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no bundle"):
        measure_latency(tmp_path)
