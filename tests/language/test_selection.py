"""Sentences for images: seen ones before unseen ones, spread, not twice, resumable, the same."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from attar.cli.main import main
from attar.data.sentences import read_sentences
from attar.errors import UsageError
from attar.language import selection, selection_search
from attar.language.selection import CHOSEN, FILLED, LOWER, REDUNDANT, choose, select, unit
from attar.language.selection_config import SelectionConfig
from attar.language.selection_output import write_selection
from attar.language.selection_search import make_search, search_kind
from attar.store.parts import part_of
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.teachers.base import TeacherInfo

DIM, IMAGES, SEEN, UNSEEN = 32, 12, 120, 200
INFO = TeacherInfo(name="random", identity="0" * 64, dim=DIM, logit_scale=100.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Ten sentences about each image, each second one nearly repeated, among unrelated ones."""
    path = tmp_path_factory.mktemp("selection") / "store"
    rng = np.random.default_rng(0)
    images = unit(rng.standard_normal((IMAGES, DIM)))
    about = np.repeat(images, SEEN // IMAGES, axis=0)
    about = unit(about + 0.15 * rng.standard_normal(about.shape))
    about[1::2] = about[::2] + 1e-3 * rng.standard_normal((SEEN // 2, DIM))
    texts = {f"unrelated {i}": rng.standard_normal(DIM) for i in range(UNSEEN)}
    texts |= {f"image {i // 10}: {i}": row for i, row in enumerate(about)}
    order = rng.permutation(list(texts))
    with StoreWriter.open(path, INFO, "float32", shard_rows=50) as writer:
        keys = [f"{i:064x}" for i in range(IMAGES)]
        writer.add_view("domainbed-8-0", {"recipe": "domainbed", "size": 8, "seed": 0, "index": 0})
        writer.add_images(keys, [f"{i}.jpg" for i in range(IMAGES)], "clean", images)
        writer.add_images(keys, ["view"] * IMAGES, "domainbed-8-0", -images)
        for at in range(0, len(order), 50):
            some = [str(text) for text in order[at : at + 50]]
            writer.add_texts(some, np.array([texts[text] for text in some]))
    return Store.open(path)


def config(count: int = 36, **changes) -> SelectionConfig:
    return SelectionConfig(count=count, **changes)


def test_chosen_sentences_are_seen_spread_and_not_repeated(store: Store, tmp_path: Path) -> None:
    found = select(store, store, config(), tmp_path)
    chosen = store.captions(found.chosen)
    assert len(set(chosen)) == 36
    assert all(text.startswith("image") for text in chosen)
    # 12 images, 36 sentences: three each.
    assert set(Counter(text.split(":")[0] for text in chosen).values()) == {3}
    pairs = Counter(int(text.split(": ")[1]) // 2 for text in chosen)
    assert max(pairs.values()) == 1
    assert (found.fates == CHOSEN).sum() == 36
    names = store.image_names(found.anchors.rows)
    for text, row in zip(chosen, found.chosen, strict=True):
        assert names[found.nearest[row, 0]] == f"{text[6:].split(':')[0]}.jpg"


def test_scores_are_mean_cosines_with_the_nearest_images(store: Store, tmp_path: Path) -> None:
    found = select(store, store, config(neighbours=3), tmp_path)
    texts = unit(store.features_of_texts(np.arange(store.num_texts)))
    cosines = found.anchors.features @ texts.T
    offsets = cosines.mean(axis=1)
    np.testing.assert_allclose(found.anchors.offsets, offsets, atol=1e-5)
    nearest = np.argsort(-(cosines - offsets[:, None]), axis=0)[:3]
    expected = np.take_along_axis(cosines, nearest, axis=0).mean(axis=0)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)


def test_the_rest_fills_up(store: Store, tmp_path: Path) -> None:
    found = select(store, store, config(count=300, pool=1), tmp_path)
    assert len(set(found.chosen.tolist())) == 300
    counts = Counter(found.fates.tolist())
    assert counts[CHOSEN] + counts[FILLED] == 300
    assert counts[FILLED] > 0
    # Of what is left, repetitions are taken last.
    assert counts[LOWER] == 0 or counts[REDUNDANT] > 0


def test_the_same_seed_gives_the_same_answer_and_a_draw_of_images(store, tmp_path) -> None:
    chosen = config(anchors=5, seed=3)
    one = select(store, store, chosen, tmp_path / "a")
    two = select(store, store, chosen, tmp_path / "b")
    np.testing.assert_array_equal(one.chosen, two.chosen)
    assert len(one.anchors.rows) == 5
    other = select(store, store, config(anchors=5, seed=4), tmp_path / "c")
    assert other.anchors.rows.tolist() != one.anchors.rows.tolist()


def test_a_killed_comparison_goes_on_with_the_next_part(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(selection, "_PART", 64)
    monkeypatch.setattr(selection, "_BLOCK", 10)
    monkeypatch.setattr(selection_search, "_COSINES", 40)
    whole = select(store, store, config(), tmp_path / "whole")
    compare, calls = selection._compare_part, []

    def breaks(*arguments) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise InterruptedError
        compare(*arguments)

    monkeypatch.setattr(selection, "_compare_part", breaks)
    with pytest.raises(InterruptedError):
        select(store, store, config(), tmp_path / "broken")
    resumed = select(store, store, config(), tmp_path / "broken")
    assert len(calls) == 3 + -(-store.num_texts // 64) - 2
    np.testing.assert_array_equal(resumed.values, whole.values)
    np.testing.assert_array_equal(resumed.chosen, whole.chosen)
    # Parts of another comparison are not taken for ours.
    other = select(store, store, config(neighbours=2), tmp_path / "broken")
    assert other.values.shape[1] == 2


def test_a_tie_goes_to_the_first_sentence_and_no_place_stays_empty() -> None:
    values = np.array([[0.5], [0.5], [0.4], [-np.inf]], np.float32)
    near = values, np.zeros((4, 1), np.int32)
    said = np.eye(4, dtype=np.float32)
    found, fates = choose(values[:, 0], near, lambda rows: said[rows], config(count=2))
    assert found.tolist() == [0, 1]
    found, fates = choose(values[:, 0], near, lambda rows: said[rows], config(count=4))
    assert found.tolist() == [0, 1, 2, 3]
    assert fates.tolist() == [CHOSEN, CHOSEN, CHOSEN, FILLED]


def test_what_is_written(store: Store, tmp_path: Path) -> None:
    found = select(store, store, config(), tmp_path / "work")
    covered = write_selection(found, store, store, config(), tmp_path / "out")
    assert read_sentences(tmp_path / "out/texts.jsonl") == store.captions(found.chosen)
    view = Store.open(tmp_path / "out/store")
    every = np.arange(view.num_texts)
    assert view.captions(every) == store.captions(found.chosen)
    assert view.info.teacher == store.info.teacher
    np.testing.assert_allclose(
        view.features_of_texts(every), store.features_of_texts(found.chosen), atol=1e-6
    )  # they are made unit rows once more
    rows = pq.read_table(tmp_path / "out/selection.parquet").to_pylist()
    assert [row["sentence"] for row in rows] == store.captions(np.arange(store.num_texts))
    assert {r["sentence"] for r in rows if r["chosen"]} == set(store.captions(found.chosen))
    assert {r["reason"] for r in rows} == {"chosen", "lower score", "says what another says"}
    texts = unit(store.features_of_texts(np.arange(store.num_texts)))
    for row, text in zip(rows, texts, strict=True):
        image = found.anchors.features[int(row["image"].removesuffix(".jpg"))]
        assert row["cosine"] == pytest.approx(float(image @ text), abs=1e-5)
    exact = (found.anchors.features @ texts[found.chosen].T).max(axis=1).mean()
    assert covered.chosen == pytest.approx(float(exact), abs=1e-5)
    assert covered.chosen > covered.random
    page = (tmp_path / "out/page.md").read_text()
    assert f"{covered.chosen:.3f} chosen, {covered.random:.3f}" in page
    assert store.captions(found.chosen[:1])[0] in page


def test_another_selection_takes_the_place_of_the_first(store: Store, tmp_path: Path) -> None:
    for count in (36, 24):
        found = select(store, store, config(count), tmp_path / str(count))
        write_selection(found, store, store, config(count), tmp_path / "out")
    view = Store.open(tmp_path / "out/store")
    assert view.captions(np.arange(view.num_texts)) == store.captions(found.chosen)


def test_faiss_finds_what_the_exact_search_finds() -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    images, texts = (unit(rng.standard_normal((n, DIM))) for n in (900, 300))
    offsets = rng.random(900).astype(np.float32) / 10
    exact, near = (make_search(images, offsets, 4, kind) for kind in ("exact", "faiss"))
    values, found = exact(texts)
    some, where = near(texts)
    assert (where[:, 0] == found[:, 0]).mean() > 0.8
    same = where == found
    np.testing.assert_allclose(some[same], values[same], atol=1e-4)


def test_faiss_that_is_not_there_is_named(monkeypatch) -> None:
    monkeypatch.setattr(selection_search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"attar\[faiss\]"):
        search_kind("faiss", 10)
    assert search_kind("auto", 5_000_000) == "exact"
    images, offsets = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    values, found = make_search(images, offsets, 2, "exact")(images)
    np.testing.assert_array_equal(found[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(values[:, 0], 1)


def test_parts_of_another_search_are_not_mixed_in(store, tmp_path, monkeypatch) -> None:
    """As when faiss was installed between a kill and the next call."""
    here = [None]
    monkeypatch.setattr(selection_search.importlib.util, "find_spec", lambda name: here[0])
    monkeypatch.setattr(selection_search, "APPROXIMATE_FROM", 1)
    monkeypatch.setattr(selection_search, "_approximate", selection_search._exact)
    select(store, store, config(), tmp_path)
    parts = {part: part.stat().st_mtime_ns for part in tmp_path.glob("part-*.npz")}
    select(store, store, config(), tmp_path)
    assert {part: part.stat().st_mtime_ns for part in parts} == parts
    here[0] = "faiss"
    select(store, store, config(), tmp_path)
    assert all(part.stat().st_mtime_ns > before for part, before in parts.items())
    assert parts


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": 0}, "--count is 0"),
        ({"pool": 0.5}, r"--pool is 0\.5"),
        ({"redundant": 0}, "--redundant is 0"),
    ],
)
def test_impossible_choices_are_refused(changes: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        config(**changes)


def test_stores_that_cannot_serve_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="320 sentences, 321 were asked"):
        select(store, store, config(count=321), tmp_path / "work")
    with StoreWriter.open(tmp_path / "empty", INFO, "float32"):
        pass
    with pytest.raises(UsageError, match="no image"):
        select(store, Store.open(tmp_path / "empty"), config(), tmp_path / "work")


def test_the_command(store: Store, tmp_path: Path, capfd) -> None:
    words = ["select-texts", "--store", str(store.path), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--count", "24"])
    assert stopped.value.code == 0
    assert "24 of 320 sentences" in capfd.readouterr().out
    assert len(read_sentences(tmp_path / "out/texts.jsonl")) == 24
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "page.md", "selection.parquet", "store", "texts.jsonl",
    ]  # fmt: skip
    part = part_of(store.path, 1) / "store.json"  # of processes that embed into the store
    part.parent.mkdir(parents=True)
    part.write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        main([*words[:-1], str(store.path), "--count", "24"])
    assert stopped.value.code == 0
    assert part.is_file()
    shutil.rmtree(part.parents[1])
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--count", "0"])
    assert stopped.value.code == 2
    assert "--count is 0" in capfd.readouterr().err
