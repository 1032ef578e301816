import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from attar.data.sources import read_sources
from attar.data.splits import SplitConfig, make_splits
from attar.errors import UsageError


def images(folder, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(folder / name)


def test_a_csv_names_everything(tmp_path):
    images(tmp_path, "m/x/a.png", "m/b.png", "m/c.png", "other/d.png")
    manifest = tmp_path / "m" / "list.csv"
    manifest.write_text(
        "Path,label,domain,split,caption,rating\n"
        'x/a.png,cat,photo,train,"a cat, sitting",5\n'
        "b.png,dog,,test,,\n"
        f"{tmp_path / 'm' / 'c.png'},,art,val,three,\n"
        "../other/d.png,dog,art,,,\n",
        encoding="utf-8-sig",
    )
    table = read_sources([manifest])
    assert table.names == ("x/a.png", "b.png", "c.png", str(tmp_path / "other" / "d.png"))
    assert table.class_names == ("cat", "dog")
    assert table.labels == (0, 1, -1, 1)
    assert table.domain_names == ("art", "photo")
    assert table.domains == (1, -1, 0, 0)
    assert table.splits == ("train", "test", "val", None)
    assert table.captions == ("a cat, sitting", None, "three", None)
    assert table.layout == "CSV manifest: 2 domains, 2 classes, 4 images"


def test_a_parquet_with_numbers_and_gaps_gives_clean_labels(tmp_path):
    images(tmp_path, "a.png", "b.png", "c.png", "d.png")
    columns = {
        "path": ["a.png", "b.png", "c.png", "d.png"],
        "label": [0.0, 1.0, None, float("nan")],
    }
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    table = read_sources([tmp_path / "list.parquet"])
    assert table.class_names == ("0", "1")
    assert table.labels == (0, 1, -1, -1)
    assert table.layout.startswith("Parquet manifest")


def test_only_a_path_column_is_needed(tmp_path):
    images(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text("path\na.png\n")
    assert read_sources([tmp_path / "list.csv"]).labels == (-1,)


def test_several_captions_of_one_image_are_several_rows(tmp_path):
    images(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text("path,caption\na.png,one\na.png,two\n")
    table = read_sources([tmp_path / "list.csv"])
    assert table.captions == ("one", "two")
    assert len(set(table.keys)) == 1


def test_unlabelled_keeps_captions_and_splits(tmp_path):
    images(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text(
        "path,label,domain,caption,split\na.png,cat,x,one,train\nb.png,cat,x,two,\n"
    )
    table = read_sources([tmp_path / "list.csv"], unlabelled=True)
    assert not table.has_labels
    assert not table.has_domains
    assert table.captions == ("one", "two")
    assert table.splits == ("train", None)


def test_what_a_teacher_gave_no_answer_to_stays_set_aside(tmp_path):
    """A store's list has two authors: who reads files, and who asks about them."""
    images(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    refused = {"path": str(tmp_path / "a.png"), "reason": "refused", "by": "teacher"}
    earlier = {"path": "gone.png", "reason": "broken"}
    (tmp_path / "aside.json").write_text(json.dumps([refused, earlier]))
    read_sources([tmp_path], set_aside=tmp_path / "aside.json")
    kept, broken = json.loads((tmp_path / "aside.json").read_text())
    assert kept == refused
    assert broken["path"] == str(tmp_path / "b.png")


def test_missing_files_are_set_aside_with_the_reason(tmp_path):
    images(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text("path\na.png\ngone.png\n.\n")
    table = read_sources([tmp_path / "list.csv"], set_aside=tmp_path / "aside.json")
    assert table.names == ("a.png",)
    listed = json.loads((tmp_path / "aside.json").read_text())
    assert [(e["path"], e["reason"]) for e in listed] == [
        (str(tmp_path / "gone.png"), "No such file or directory"),
        (str(tmp_path), "Is a directory"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\na.png,trian\n", "unknown split in .*row 1: 'trian': did you mean 'train'"),
        ("file,label\na.png,x\n", r"no column 'path' \(it has: file, label\)"),
        ("path\n", "has no rows"),
        ("", "has no rows"),
        ("path,label\n,cat\n", "row 1 has no path"),
        ('path\n"a.png\n', "cannot be read as CSV"),
    ],
)
def test_a_wrong_manifest_is_refused_by_name(tmp_path, text, message):
    images(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_sources([tmp_path / "list.csv"])
    assert str(tmp_path / "list.csv") in str(caught.value)


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "list.parquet").write_text("path\n")
    with pytest.raises(UsageError, match="cannot be read as Parquet"):
        read_sources([tmp_path / "list.parquet"])
    (tmp_path / "list.csv").write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(UsageError, match="cannot be read as CSV in UTF-8"):
        read_sources([tmp_path / "list.csv"])


def test_manifest_splits_win_and_the_rest_is_divided(tmp_path):
    names = [f"{i}.png" for i in range(26)]
    images(tmp_path, *names)
    fixed = ["train", "val", "few_shot", "test", "test_ood", "held_out"]
    rows = [f"{n},{fixed[i] if i < 6 else ''}" for i, n in enumerate(names)]
    (tmp_path / "list.csv").write_text("path,split\n" + "\n".join(rows) + "\n")
    splits = make_splits(read_sources([tmp_path / "list.csv"]), SplitConfig())
    places = {n: split for split, table in splits.tables().items() for n in table.names}
    assert [places[f"{i}.png"] for i in range(6)] == [
        *("train", "val", "few_shot", "test_id", "test_ood", "held_out")
    ]
    sizes = {name: len(table) for name, table in splits.tables().items()}
    assert sizes == {
        "train": 15,
        "val": 3,
        "few_shot": 1,
        "test_id": 5,
        "test_ood": 1,
        "unseen_classes": 0,
        "further_unseen": 0,
        "held_out": 1,
    }
