"""Rank correlations of few points, computed by hand; the script on records made for it."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from attar.bench.ranks import (
    EXACT,
    LEAST_RESAMPLED,
    RANDOM_ORDERS,
    chance_below,
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


def test_few_points_are_rarely_significant_by_chance() -> None:
    assert chance_below(0.05, 4) == 0  # 2 / 24 is the least p
    assert chance_below(0.05, 5) == pytest.approx(2 / 120)
    assert chance_below(0.2, 4) == pytest.approx(2 / 24)  # the next p is 8 / 24
    assert 0.04 < chance_below(0.05, 8) < 0.05
    assert chance_below(0.05, EXACT + 1) == 0.05


def test_least_p_is_that_of_a_perfect_order() -> None:
    for number in (3, 5, 12):  # all orders, all orders, random ones
        order = column(*range(number))
        assert permutation_p(order, order).item() == pytest.approx(least_p(number))
    assert least_p(EXACT + 1) == 1 / (RANDOM_ORDERS + 1)


def test_p_of_many_points_is_near_scipys() -> None:
    random = np.random.default_rng(1)
    left = random.normal(size=(2 * EXACT, 1))
    right = left + 1.5 * random.normal(size=(2 * EXACT, 1))
    expected = spearmanr(left[:, 0], right[:, 0]).pvalue
    assert permutation_p(left, right).item() == pytest.approx(expected, abs=0.015)


def test_rows_are_resampled() -> None:
    random = np.random.default_rng(2)
    left = random.normal(size=(LEAST_RESAMPLED, 1))
    right = left + random.normal(size=(LEAST_RESAMPLED, 1))
    drawn = resampled_correlation(left, np.hstack([right, left, -left]))
    found = interval(drawn[:, 0, 0])
    assert found is not None
    assert found[0] < rank_correlation(left, right).item() < found[1]
    assert interval(drawn[:, 0, 1]) == pytest.approx((1, 1))  # perfect in every draw
    assert interval(drawn[:, 0, 2]) == pytest.approx((-1, -1))
    # Other values, same draws: what means over seeds and differences rest on.
    again = resampled_correlation(np.exp(left), right)
    assert again[:, 0, 0] == pytest.approx(drawn[:, 0, 0])


def test_few_rows_have_no_interval() -> None:
    few = column(*range(LEAST_RESAMPLED - 1))
    assert resampled_correlation(few, few).shape == (0, 1, 1)
    assert interval(resampled_correlation(few, few)[:, 0, 0]) is None
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


def correlations(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = read_json(folder / "coherence.json")
    return {(c["predictor"], c["domain"]): c for c in found["correlations"]}


def test_the_files_say_what_the_records_say(script: ModuleType, tmp_path: Path) -> None:
    # Means over seeds .1, .2, .3, .4; "b" and "c" change places in the second seed.
    accuracy = {"a": [0.1, 0.1], "b": [0.05, 0.35], "c": [0.3, 0.3], "d": [0.4, 0.4]}
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
    assert (found["rows"], found["seeds"]) == (["a", "b", "c", "d"], [0, 1])
    assert (found["rows_left_out"], found["seeds_left_out"]) == (["closed-set"], [])
    assert {c["domain"] for c in found["correlations"]} == {"all", "noto"}  # of the held-out ones
    said = correlations(folder)
    one = said["M_rel ↑, training images", "noto"]
    assert one["over_rows"]["rho"] == pytest.approx(1)
    assert one["over_rows"]["p"] == pytest.approx(2 / 24)
    assert one["over_rows"]["interval"] is None
    # Here every metric grows with accuracy, which is the wrong way for inversions.
    assert said["M_vlalign, k=3 ↓, training images", "all"]["over_rows"]["rho"] == pytest.approx(-1)
    assert said["accuracy ↑, seen classes", "all"]["over_rows"]["rho"] == pytest.approx(-1)
    assert one["more_than"]["accuracy ↑, seen classes"]["rho"] == pytest.approx(2)
    page = (folder / "coherence.md").read_text()
    assert "nothing here can be significant" in page
    assert "| M_rel ↑, training images | 1.00 (p = 0.083) | 1.00 (p = 0.083) |" in page
    assert "mean over seeds 0, 1)" in page
    assert "No intervals: 4 rows are too few" in page
    assert "left out: closed-set" in page
    assert "\n2. b\n" in page
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
    assert "one point a row (seed 0)" in page
    assert "seeds' ρ" not in page  # one seed a row: nothing further to say


def test_students_are_ranked_within_their_seed(script: ModuleType, tmp_path: Path) -> None:
    # The second seed has harder unseen classes and lower coherence: pooled, ρ would be above 0.
    accuracy = {"a": [0.5, 0.1], "b": [0.6, 0.2], "c": [0.7, 0.3]}
    records = records_of(accuracy, lambda value: (1.4 if value > 0.4 else 0.4) - value)
    folder = write(tmp_path / "results", records)
    script.main(["--results", str(folder)])
    one = correlations(folder)["M_rel ↑, training images", "all"]
    assert one["within_seeds"]["rho"] == pytest.approx(-1)
    line = "| M_rel ↑, training images | -1.00 | -1.00 |"
    assert line in (folder / "coherence.md").read_text()


def test_rows_are_compared_over_shared_seeds(script: ModuleType, tmp_path: Path) -> None:
    first = write(tmp_path / "first", records_of({"a": [0.1, 0.1], "b": [0.2, 0.2]}, float))
    # The third seed would put the coherence of "c" above all others.
    other = write(tmp_path / "other", records_of({"c": [0.3, 0.3, 0.9]}, lambda value: value**2))
    script.main(["--results", str(first), str(other)])
    found = read_json(first / "coherence.json")
    assert (found["rows"], found["seeds"]) == (["a", "b", "c"], [0, 1])
    assert found["seeds_left_out"] == [2]
    one = correlations(first)["M_rel ↑, training images", "all"]
    assert one["over_rows"]["rho"] == pytest.approx(-0.5)  # coherence .1, .2, .09
    page = (first / "coherence.md").read_text()
    words = "mean over seeds 0, 1, which all rows have; not used, since some row lacks it: seed 2"
    assert words in page
    apart = records_of({"d": [0.4]}, float)
    apart = [replace(r, extra={"row": "d", "seed": 7}) for r in apart]
    with pytest.raises(
        UsageError, match=r"no seed is shared by all rows \(a: \[0, 1\]; .*d: \[7\]"
    ):
        script.main(["--results", str(first), str(write(tmp_path / "apart", apart))])


def test_many_rows_have_intervals_and_small_p(script: ModuleType, tmp_path: Path) -> None:
    accuracy = {f"row{n}": [n / 20, n / 30] for n in range(EXACT + 4)}
    folder = write(tmp_path / "results", records_of(accuracy, float))
    script.main(["--results", str(folder)])
    page = (folder / "coherence.md").read_text()
    assert "even a perfect order has p < 0.001." in page
    assert "10,000 random orders and the observed" in page
    assert "| M_rel ↑, training images | 1.00 (p < 0.001) | 1.00 (p < 0.001) |" in page
    assert "| M_rel ↑, training images | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in page
    assert "pulls ρ outwards" in page
    assert "No intervals" not in page


def test_every_domain_is_drawn(script: ModuleType, tmp_path: Path) -> None:
    rows = tuple("abc")
    domains = ("all", *(f"domain{n}" for n in range(5)))
    values = np.random.default_rng(3).random((1, 3, 40))
    points = script.Points(
        rows=rows,
        seeds=(0,),
        predictors=values[..., : len(script.PREDICTORS)],
        outcomes=values[..., -len(domains) :],
        domains=domains,
    )
    script.draw(points, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    # Text is drawn as paths, each with its words in a comment.
    for domain in domains[1:]:
        assert f"unseen classes: {domain} " in drawn
    looks = [tuple(look.values()) for look in script._looks(domains)]
    assert len(set(looks)) == len(domains)
    # The third row's number stands beside its mark in each of 8 panels, once a domain.
    assert drawn.count("<!-- 3 -->") >= 8 * len(domains)


def test_what_cannot_be_correlated_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no results\.jsonl"):
        script.main(["--results", str(tmp_path)])
    two = write(tmp_path / "two", records_of({"a": [0.1], "b": [0.2]}, float))
    with pytest.raises(UsageError, match="2 rows"):
        script.main(["--results", str(two)])
    other = write(tmp_path / "other", records_of({"c": [0.3]}, float, model="timm/b"))
    with pytest.raises(UsageError, match="several students"):
        script.main(["--results", str(two), str(other)])
    elsewhere = [replace(r, dataset="pacs") for r in records_of({"c": [0.3]}, float)]
    with pytest.raises(UsageError, match=r"several datasets \(emoji, pacs\)"):
        script.main(["--results", str(two), str(write(tmp_path / "elsewhere", elsewhere))])
    empty = write(tmp_path / "empty", [])
    with pytest.raises(UsageError, match="no row has both"):
        script.main(["--results", str(empty)])


def test_a_folder_and_its_manifest_are_the_same_images(script: ModuleType, tmp_path: Path) -> None:
    one = write(tmp_path / "one", records_of({"a": [0.1], "b": [0.2]}, float))
    named = [replace(r, dataset="captions.csv") for r in records_of({"c": [0.3]}, float)]
    folders = ["--results", str(one), str(write(tmp_path / "two", named))]
    script.main([*folders, "--same-images", "emoji", "captions.csv"])
    assert read_json(one / "coherence.json")["rows"] == ["a", "b", "c"]
    with pytest.raises(UsageError, match="several datasets"):
        script.main([*folders, "--same-images", "emoji", "others.csv"])


def test_two_values_of_one_number_are_refused(script: ModuleType, tmp_path: Path) -> None:
    records = records_of({"a": [0.1], "b": [0.2], "c": [0.3]}, float)
    one = write(tmp_path / "one", records)
    script.main(["--results", str(one), str(one)])  # said twice, and the same
    assert read_json(one / "coherence.json")["rows"] == ["a", "b", "c"]
    two = write(tmp_path / "two", records_of({"b": [0.25]}, float))
    with pytest.raises(UsageError, match=r"row b, seed 0 has two values of .*, 0\.2 and 0\.25"):
        script.main(["--results", str(one), str(two)])
