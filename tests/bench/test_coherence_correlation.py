"""Rank correlations of few points, computed by hand; the script on records made for it."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import spearmanr

from attar.bench.ranks import (
    EXACT,
    interval,
    least_p,
    permutation_p,
    rank_correlation,
    resampled_correlation,
)
from attar.errors import UsageError
from attar.files import read_json
from attar.records import Record

SCRIPT = Path(__file__).parents[2] / "scripts" / "coherence_correlation.py"


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coherence_correlation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_spearman_by_hand() -> None:
    # Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 (1 + 1) / (4 * 15) = 0.8.
    assert rank_correlation(column(1, 2, 3, 10), column(5, 7, 6, 9)).item() == pytest.approx(0.8)
    # A tie: ranks 1.5 1.5 3 against 1 2 3, 1.5 / sqrt(1.5 * 2).
    tied = rank_correlation(column(4, 4, 5), column(1, 2, 3)).item()
    assert tied == pytest.approx(1.5 / np.sqrt(3))
    assert np.isnan(rank_correlation(column(1, 1, 1), column(1, 2, 3)).item())


def test_spearman_is_scipys() -> None:
    random = np.random.default_rng(0)
    left, right = random.integers(0, 6, (12, 3)) * 1.0, random.normal(size=(12, 2))
    found = rank_correlation(left, right)
    for i in range(3):
        for j in range(2):
            assert found[i, j] == pytest.approx(spearmanr(left[:, i], right[:, j]).statistic)


def test_exact_p_by_hand() -> None:
    # Of 24 orders one is perfect and one reversed; 3 more on each side have |rho| 0.8.
    order = column(1, 2, 3, 4)
    assert permutation_p(order, column(2, 3, 5, 7)).item() == pytest.approx(2 / 24)
    assert permutation_p(order, column(7, 5, 3, 2)).item() == pytest.approx(2 / 24)
    assert permutation_p(order, column(2, 5, 3, 7)).item() == pytest.approx(8 / 24)
    assert least_p(4) == pytest.approx(2 / 24)
    assert np.isnan(permutation_p(column(1, 1, 1), column(1, 2, 3)).item())


def test_p_of_many_points_is_near_scipys() -> None:
    random = np.random.default_rng(1)
    left = random.normal(size=(2 * EXACT, 1))
    right = left + 1.5 * random.normal(size=(2 * EXACT, 1))
    expected = spearmanr(left[:, 0], right[:, 0]).pvalue
    assert permutation_p(left, right).item() == pytest.approx(expected, abs=0.015)


def test_groups_are_drawn_whole() -> None:
    # Within a row the order is against the one between rows: single points would give other values.
    left, right = column(1, 2, 11, 12), column(2, 1, 12, 11)
    drawn = resampled_correlation(left, right, ("a", "a", "b", "b"))[:, 0, 0]
    # Both rows: ranks 1 2 3 4 against 2 1 4 3, 1 - 6 * 4 / 60; one row twice: -1.
    assert set(np.round(drawn, 6)) == {0.6, -1.0}
    assert interval(drawn) == pytest.approx((-1.0, 0.6))
    assert interval(np.array([np.nan])) is None


def records_of(
    accuracy: dict[str, list[float]], predictor: Callable[[float], float], model: str = "timm/a"
) -> list[Record]:
    """Return students {row: accuracy of each seed} whose coherence follows from the accuracy."""
    coherent = [
        "relative_coherence",
        *(f"neighborhood_overlap@{k}" for k in (3, 5, 10)),
        *(f"alignment_inversions@{k}" for k in (2, 3, 5)),
    ]
    found = []
    unseen = "unseen_classes"
    for row, seeds in accuracy.items():
        for seed, value in enumerate(seeds):
            said = [
                *(("coherence", s, "all", coherent, predictor) for s in ("train", unseen)),
                *(("fidelity", s, "all", ["mean_cosine"], predictor)
                  for s in ("test_id", unseen)),
                ("zeroshot_classification", "test_id", "all", ["mean_per_class_recall"],
                 lambda value: -value),
                *(("zeroshot_classification", unseen, d, ["mean_per_class_recall"], float)
                  for d in ("all", "noto", "fluent")),
                ("zeroshot_classification", "held_out", "noto", ["mean_per_class_recall"], float),
            ]  # fmt: skip
            found += [
                Record(
                    dataset="emoji",
                    model=model,
                    pretrained="",
                    task=task,
                    metrics={name: of(value) for name in names},
                    split=split,
                    domain=domain,
                    extra={"row": row, "seed": seed},
                )
                for task, split, domain, names, of in said
            ]
    return found


def write(folder: Path, records: list[Record]) -> Path:
    folder.mkdir()
    lines = [json.dumps(asdict(record)) + "\n" for record in records]
    (folder / "results.jsonl").write_text("".join(lines))
    return folder


def test_the_files_say_what_the_records_say(script: ModuleType, tmp_path: Path) -> None:
    # Means over seeds .1, .2, .3, .4; "b" and "c" overlap as single students.
    accuracy = {"a": [0.1], "b": [0.05, 0.35], "c": [0.25, 0.35], "d": [0.4]}
    records = records_of(accuracy, lambda value: 2 * value)
    closed = Record(
        dataset="emoji",
        model="timm/a",
        pretrained="",
        task="zeroshot_classification",
        metrics={"mean_per_class_recall": 0.9},
        extra={"row": "closed-set", "seed": 0},
    )
    folder = write(tmp_path / "results", [*records, closed])
    script.main(["--results", str(folder)])
    found = read_json(folder / "coherence.json")
    assert found["rows"] == {"a": 1, "b": 2, "c": 2, "d": 1}
    assert found["left_out"] == ["closed-set"]
    assert {c["domain"] for c in found["correlations"]} == {"all", "noto"}  # of the held-out ones
    said = {(c["predictor"], c["domain"]): c for c in found["correlations"]}
    one = said["M_rel ↑, training images", "noto"]
    assert one["rows"]["rho"] == pytest.approx(1)
    assert one["rows"]["p"] == pytest.approx(2 / 24)
    assert (one["rows"]["n"], one["seeds"]["n"]) == (4, 6)
    # Here every metric grows with accuracy, which is the wrong way for inversions.
    assert said["M_vlalign, k=3 ↓, training images", "all"]["rows"]["rho"] == pytest.approx(-1)
    assert said["accuracy ↑, seen classes", "all"]["rows"]["rho"] == pytest.approx(-1)
    assert one["more_than"]["accuracy ↑, seen classes"]["rho"] == pytest.approx(2)
    page = (folder / "coherence.md").read_text()
    assert "nothing here can be significant" in page
    assert "| M_rel ↑, training images | 1.00 (p 0.083) | 1.00 (p 0.083) |" in page
    assert "left out: closed-set" in page
    assert "2. b (2 seeds)" in page
    assert (folder / "coherence.svg").read_text().count("<svg") == 1


def test_the_same_results_make_the_same_files(script: ModuleType, tmp_path: Path) -> None:
    accuracy = {
        name: [value] for name, value in zip("abcde", (0.1, 0.4, 0.2, 0.5, 0.3), strict=True)
    }
    folders = [write(tmp_path / name, records_of(accuracy, float)) for name in ("one", "two")]
    for folder in folders:
        script.main(["--results", str(folder)])
    for name in ("coherence.json", "coherence.md", "coherence.svg"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    page = (folders[0] / "coherence.md").read_text()
    assert "even a perfect order has p = 0.017." in page
    assert "students with the accuracy" not in page  # one seed a row: nothing further to say


def test_what_cannot_be_correlated_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no results\.jsonl"):
        script.main(["--results", str(tmp_path)])
    two = write(tmp_path / "two", records_of({"a": [0.1], "b": [0.2]}, float))
    with pytest.raises(UsageError, match="2 rows"):
        script.main(["--results", str(two)])
    other = write(tmp_path / "other", records_of({"c": [0.3]}, float, model="timm/b"))
    with pytest.raises(UsageError, match="several students"):
        script.main(["--results", str(two), str(other)])
    empty = write(tmp_path / "empty", [])
    with pytest.raises(UsageError, match="no row has both"):
        script.main(["--results", str(empty)])
