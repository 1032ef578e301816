"""Several labels an image: manifest, table, batches and the script that composes scenes."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from attar.data.classes import make_class_list, read_class_list
from attar.data.sources import read_sources
from attar.data.splits import SourceSplits, SplitConfig, make_splits
from attar.data.table import ImageTable, concatenate, label_sets_among
from attar.errors import UsageError
from attar.training.config import TrainingConfig
from attar.training.feed import Feed, Place

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_scenes.py"


def write_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(count)]
    for name in names:
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / name)
    return names


def write_manifest(folder: Path, cells: list[str], splits: list[str] | None = None) -> Path:
    names = write_images(folder, len(cells))
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels", *(["split"] if splits else [])])
        for i, name in enumerate(names):
            writer.writerow([name, cells[i], *([splits[i]] if splits else [])])
    return folder / "list.csv"


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    return read_sources([write_manifest(tmp_path / "m", ["cat|dog", "ant", "", " dog | ant|dog "])])


def test_a_manifest_names_several_labels(table: ImageTable) -> None:
    assert table.class_names == ("ant", "cat", "dog")
    assert table.label_sets == ((1, 2), (0,), (), (0, 2))
    assert table.labels == (-1, -1, -1, -1)
    assert table.has_label_sets
    assert not table.has_labels
    assert table.layout == "CSV manifest: 3 classes, 4 images"
    expected = [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert table.multi_hot(range(4)).tolist() == expected
    assert table.multi_hot([3, 0]).tolist() == [expected[3], expected[0]]
    assert table.multi_hot([0]).dtype == np.float32


def test_a_parquet_may_hold_lists(tmp_path: Path) -> None:
    names = write_images(tmp_path, 3)
    columns = {"path": names, "labels": [["b", "a"], [], None]}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    assert read_sources([tmp_path / "list.parquet"]).label_sets == ((0, 1), (), ())
    pq.write_table(pa.table({"path": names, "labels": ["b|a", "a", None]}), tmp_path / "t.parquet")
    assert read_sources([tmp_path / "t.parquet"]).label_sets == ((0, 1), (0,), ())


def test_a_class_list_gives_the_order(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, ["cat|dog", "hot_dog"])
    classes = make_class_list(["Hot dog", "dog", "cat"])
    found = read_sources([manifest], class_list=classes)
    assert found.class_names == ("Hot dog", "dog", "cat")
    assert found.label_sets == ((1, 2), (0,))
    with pytest.raises(UsageError, match="cat"):
        read_sources([manifest], class_list=make_class_list(["Hot dog", "dog"]))


def test_broken_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"row 2 has an empty label in 'a\|\|b'"):
        read_sources([write_manifest(tmp_path / "x", ["a|b", "a||b"])])
    with pytest.raises(UsageError, match="one class only"):
        read_sources([write_manifest(tmp_path / "y", ["a", ""])])
    (tmp_path / "x" / "list.csv").write_text("path,label,labels\n0.png,a,b\n")
    with pytest.raises(UsageError, match="both a 'label' and a 'labels' column"):
        read_sources([tmp_path / "x" / "list.csv"])


def test_unlabelled_drops_label_sets(tmp_path: Path) -> None:
    found = read_sources([write_manifest(tmp_path, ["a|b", "b"])], unlabelled=True)
    assert not found.has_label_sets
    assert found.class_names == ()


def test_one_label_beside_several_is_a_set_of_one(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m", ["a|b", "b"])
    for label in "bc":
        write_images(tmp_path / "folder" / label, 1)
    found = read_sources([manifest, tmp_path / "folder"])
    assert found.class_names == ("a", "b", "c")
    assert found.label_sets == ((0, 1), (1,), (1,), (2,))
    assert found.labels == (-1, -1, 1, 2)


def test_a_table_keeps_its_label_sets(table: ImageTable, tmp_path: Path) -> None:
    table.save(tmp_path / "table.parquet")
    assert ImageTable.load(tmp_path / "table.parquet") == table
    assert table.select([3, 1]).label_sets == ((0, 2), (0,))
    empty = table.select([])
    assert empty.label_sets == ()
    assert concatenate([table, empty]) == table
    with pytest.raises(ValueError, match="differ in length"):
        ImageTable(**{**vars(table), "label_sets": ((0,),)})


def test_label_sets_in_other_class_names(table: ImageTable) -> None:
    assert label_sets_among(table, ("dog", "bee", "ant")) == ((0,), (2,), (), (0, 2))


def test_joined_tables_count_in_joined_names(table: ImageTable, tmp_path: Path) -> None:
    other = read_sources([write_manifest(tmp_path / "other", ["bee|ant", "bee"])])
    joined = concatenate([table, other])
    assert joined.class_names == ("ant", "cat", "dog", "bee")
    assert joined.label_sets == (*table.label_sets, (0, 3), (3,))


def test_a_table_of_single_labels_has_no_sets(tmp_path: Path) -> None:
    for label in "ab":
        write_images(tmp_path / "data" / label, 2)
    found = read_sources([tmp_path / "data"])
    assert found.label_sets == ()
    assert found.multi_hot([0, 3]).tolist() == [[1, 0], [0, 1]]
    found.save(tmp_path / "table.parquet")
    assert "label_sets" not in pq.read_schema(tmp_path / "table.parquet").names
    assert concatenate([found, found]).label_sets == ()


def test_batches_are_multi_hot(table: ImageTable) -> None:
    nothing = table.select([])
    for source in (
        SourceSplits(train=table, val=nothing, few_shot=nothing),
        SourceSplits(train=table.select([0, 1]), val=nothing, few_shot=table.select([2, 3])),
    ):
        config = TrainingConfig(batch_size=4, workers=0, steps=2, augmentation="none")
        feed = Feed(source, None, config, 32)
        place = Place(torch.device("cpu"))
        for batch in feed.batches(range(2), "clean", place):
            rows = [table.keys.index(key) for key in batch.keys]
            assert sorted(rows) == [0, 1, 2, 3]
            assert torch.equal(batch.labels, torch.from_numpy(table.multi_hot(rows)))
            assert batch.labels.dtype == torch.float32


def test_splits_of_a_manifest_keep_label_sets(tmp_path: Path) -> None:
    cells, splits = ["a|b", "b|c", "a|c", "c", "a", "b"], ["train"] * 4 + ["test", "val"]
    found = read_sources([write_manifest(tmp_path, cells, splits)])
    made = make_splits(found, SplitConfig())
    assert made.source.train.label_sets == ((0, 1), (1, 2), (0, 2), (2,))
    assert made.test_id.label_sets == ((0,),)
    assert made.source.val.label_sets == ((1,),)


def make_scenes(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_scenes(tmp_path: Path) -> None:
    sizes = ("--train", "12", "--few-shot", "3", "--test", "6", "--size", "64")
    for name in ("one", "two"):
        result = make_scenes(tmp_path / name, *sizes)
        assert result.returncode == 0, result.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "manifest.csv").read_bytes() == (two / "manifest.csv").read_bytes()
    with (one / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 + 3 + 6 + 6
    seen, unseen = ((one / f"{n}.txt").read_text().split("\n")[:-1] for n in ("seen", "unseen"))
    assert len(seen) == len(unseen) == 13
    assert not set(seen) & set(unseen)
    described = read_class_list(one / "descriptions.json")
    assert set(described.names) == {*seen, *unseen}
    for row in rows:
        labels = row["labels"].split("|")
        assert 2 <= len(labels) == len(set(labels)) <= 5
        if row["split"] in ("train", "test_id"):
            assert set(labels) <= set(seen)
        else:
            assert set(labels) & set(seen)
            assert set(labels) & set(unseen)
        with Image.open(one / row["path"]) as image, Image.open(two / row["path"]) as same:
            assert image.size == (64, 64)
            assert image.tobytes() == same.tobytes()
    table = read_sources([one / "manifest.csv"])
    assert len(set(table.keys)) == len(rows), "no scene is there twice"
    splits = make_splits(table, SplitConfig()).tables()
    counts = {name: len(part) for name, part in splits.items() if len(part)}
    assert counts == {"train": 12, "few_shot": 3, "test_id": 6, "unseen_classes": 6}
    again = make_scenes(one, *sizes)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
