"""Every benchmark runs at tiny sizes and prints one line of sound ratios; no timing is judged."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from attar.device import pick_device, supported_precisions
from attar.errors import UsageError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ONLINE = [f"teacher in {p}" for p in supported_precisions(pick_device()) if p != "fp16"]
RATIOS = {
    "cached_step": [
        "feature-mse",
        "feature-mse without images",
        "vl2v-adip",
        "vl2v-adip without images",
    ],
    "data_loading": ["test_resnet", "mobilenetv3_small_050"],
    "cached_vs_online": ONLINE,
    "embed_throughput": ["embed", "embed_and_check"],
}
FACTS = {"image_size", "batch_size", "workers", "timed_steps", "images", "mean_file_kilobytes"}


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import as a script does: from its own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def common() -> ModuleType:
    return importlib.import_module("common")


def test_every_script_is_tested() -> None:
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")} - {"common", "all"}
    assert scripts == set(RATIOS)
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert all(f"python benchmarks/{name}.py" in readme for name in scripts)


def test_all_of_them_make_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    together = importlib.import_module("all")
    assert set(together.NAMES) == set(RATIOS)
    monkeypatch.setattr(together, "NAMES", ("cached_step",))
    together.main(["--smoke", "--out", str(tmp_path / "all.json")])
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line) == json.loads((tmp_path / "all.json").read_text())
    assert list(json.loads(line)["ratios"]["cached_step"]) == RATIOS["cached_step"]
    with pytest.raises(SystemExit):
        together.run_one("cached_step", ["--images", "0"])


@pytest.mark.parametrize("name", RATIOS)
def test_smoke_prints_one_line_of_ratios(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(name).main(["--smoke"])
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == 1
    answer = json.loads(printed[0])
    assert answer["benchmark"] == name
    assert list(answer["ratios"]) == RATIOS[name]
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in answer["ratios"].values())
    assert answer["rounds"].keys() == answer["ratios"].keys()
    assert answer["facts"].keys() >= FACTS
    assert answer["facts"]["machine"].keys() >= {"processor", "cores", "threads", "torch"}
    assert answer["aims"].keys() <= answer["ratios"].keys()


def test_a_script_starts_by_itself() -> None:
    command = [sys.executable, str(BENCHMARKS / "cached_step.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--smoke" in done.stdout


def test_sizes_that_fill_no_batch_are_refused(
    common: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = common.make_parser("")
    with pytest.raises(SystemExit):
        common.parse(parser, ["--images", "4", "--batch-size", "8"], {})
    assert "do not fill one batch" in capsys.readouterr().err
    common.make_images(tmp_path / "few", 4)
    args = common.parse(parser, ["--data", str(tmp_path / "few"), "--batch-size", "8"], {})
    with pytest.raises(UsageError, match="holds 4 images, less than one batch"):
        common.read_images(args, tmp_path)


def test_given_images_are_used_in_whole_batches(common: ModuleType, tmp_path: Path) -> None:
    common.make_images(tmp_path / "images", 7)
    copy = tmp_path / "images" / "copy.jpg"
    copy.write_bytes((tmp_path / "images" / "000000.jpg").read_bytes())
    args = common.parse(
        common.make_parser(""), ["--data", str(tmp_path / "images"), "--batch-size", "3"], {}
    )
    table = common.read_images(args, tmp_path)
    assert len(table) == len(set(table.keys)) == 6
    assert 0 <= min(table.labels) <= max(table.labels) < len(table.class_names)
    assert 15 < common.describe_images(args, table)["mean_file_kilobytes"] < 35


def test_smoke_leaves_options_that_were_given(common: ModuleType) -> None:
    small = {"images": 16, "batch_size": 8}
    args = common.parse(common.make_parser(""), ["--smoke", "--images", "24"], small)
    assert (args.images, args.batch_size) == (24, 8)


def test_two_sides_take_turns(common: ModuleType) -> None:
    called: list[str] = []

    def side(name: str, value: float) -> float:
        called.append(name)
        return value + len(called)

    references, values = common.take_turns(lambda: side("a", 0), lambda: side("b", 10), 2)
    assert called == ["a", "b", "a", "b", "a"]
    assert (references, values) == ([1, 3, 5], [12, 14])
    assert common.ratios_between(references, values) == [12 / 2, 14 / 4]


def test_chained_operations_are_timed_by_name(common: ModuleType) -> None:
    before = torch.get_num_threads()
    took = common.time_operations(["3", "4"], [int, torch.zeros, torch.nn.Identity()])
    assert list(took) == ["int", "zeros", "Identity"]
    assert all(milliseconds >= 0 for milliseconds in took.values())
    assert torch.get_num_threads() == before
