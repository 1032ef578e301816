import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from attar.errors import AttarError, UsageError
from attar.files import sha256_text
from attar.store import shards
from attar.store.layout import StoreInfo
from attar.store.shards import KeyIndex, pack_keys
from attar.store.store import Store, store_info
from attar.store.verify import check_files
from attar.store.writer import StoreWriter
from attar.teachers.base import TeacherInfo

DIM = 8
INFO = TeacherInfo(name="ViT-Test", identity="ab" * 32, dim=DIM, logit_scale=50.0, licence="free")


def keys_of(count: int, start: int = 0) -> list[str]:
    return [sha256_text(str(start + i)) for i in range(count)]


def features_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32) * 7


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(path: Path, count: int, shard_rows: int = 10, start: int = 0) -> np.ndarray:
    features = features_of(count, seed=start)
    with StoreWriter.open(path, INFO, shard_rows=shard_rows) as writer:
        for at in range(0, count, 5):
            part = slice(at, at + 5)
            names = [f"{start + i}.jpg" for i in range(count)][part]
            writer.add_images(keys_of(count, start)[part], names, "clean", features[part])
    return features


def test_what_is_written_is_read_back_by_key_in_any_order(tmp_path: Path) -> None:
    features = write(tmp_path / "store", 33)
    store = Store.open(tmp_path / "store")
    order = np.random.default_rng(1).permutation(33)
    rows = store.image_rows([keys_of(33)[i] for i in order])
    read = store.image_features(rows)
    assert read.dtype == np.float16
    np.testing.assert_allclose(read, unit(features)[order], atol=1e-3)
    assert np.all((unit(features)[order] * unit(read.astype(np.float64))).sum(axis=1) > 0.9999)
    assert np.array_equal(store.has_images([*keys_of(2), sha256_text("no")]), [True, True, False])


def test_files_follow_the_published_layout_and_every_number_in_store_json(tmp_path: Path) -> None:
    path = tmp_path / "store"
    write(path, 23)
    with StoreWriter.open(path, INFO) as writer:
        writer.add_texts(["a dog", "a cat"], features_of(2))
    assert sorted(file.name for file in (path / "img_emb").iterdir()) == [
        "img_emb_0.npy",
        "img_emb_1.npy",
        "img_emb_2.npy",
    ]
    described = json.loads((path / "store.json").read_text())
    assert described["teacher"]["identity"] == INFO.identity
    assert described["counts"] == {"images": {"clean": 23}, "image_rows": 23, "text_rows": 2}
    for number, shard in enumerate(described["image_shards"]):
        array = np.load(path / "img_emb" / f"img_emb_{number}.npy")
        table = pq.read_table(path / "metadata" / f"metadata_{number}.parquet")
        assert array.shape == (shard["rows"], DIM)
        assert array.dtype == np.float16
        assert table.num_rows == shard["rows"]
        assert table.column_names == ["image_path", "key", "view", "view_params"]
    texts = pq.read_table(path / "text_metadata" / "metadata_0.parquet")
    assert texts["caption"].to_pylist() == ["a dog", "a cat"]
    assert texts["key"].to_pylist() == [sha256_text("a dog"), sha256_text("a cat")]


def test_in_stored_order_every_row_comes_once(tmp_path: Path) -> None:
    features = write(tmp_path, 23)
    batches = list(Store.open(tmp_path).iterate_images(7))
    assert [len(batch.keys) for batch in batches] == [7, 7, 7, 2]
    assert [key for batch in batches for key in batch.keys] == keys_of(23)
    assert [name for batch in batches for name in batch.names] == [f"{i}.jpg" for i in range(23)]
    rows = np.concatenate([batch.features for batch in batches])
    np.testing.assert_allclose(rows, unit(features), atol=1e-3)


def test_texts_are_found_by_the_exact_string(tmp_path: Path) -> None:
    texts = ["a photo of a dog.", "a photo of a dog", "ein Müller, 犬"]
    with StoreWriter.open(tmp_path, INFO) as writer:
        writer.add_texts(texts, features_of(3))
    store = Store.open(tmp_path)
    np.testing.assert_allclose(
        store.text_features([texts[2], texts[0]]), unit(features_of(3))[[2, 0]], atol=1e-3
    )
    assert list(store.has_texts([*texts, "A photo of a dog"])) == [True] * 3 + [False]
    with pytest.raises(AttarError, match=r"1 of 2 texts .*'a bird'.* attar embed .*ViT-Test"):
        store.text_features([texts[0], "a bird"])


def test_missing_images_are_counted_with_the_command_that_adds_them(tmp_path: Path) -> None:
    write(tmp_path, 3)
    with pytest.raises(AttarError, match=r"2 of 5 images .*attar embed --data DATA --teacher ViT"):
        Store.open(tmp_path).image_rows(keys_of(5))


def test_more_shards_than_maps_are_kept_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "OPEN_MAPS", 3)
    monkeypatch.setattr(shards, "OPEN_TABLES", 2)
    features = write(tmp_path, 40, shard_rows=5)
    store = Store.open(tmp_path)
    order = np.random.default_rng(0).permutation(40)
    rows = store.image_rows([keys_of(40)[i] for i in order])
    np.testing.assert_allclose(store.image_features(rows), unit(features)[order], atol=1e-3)
    assert len(store.info.image_shards) == 8
    assert len(store._images._maps) == 3
    assert store.recorded_view(rows) == [None] * 40


def test_a_pickled_store_carries_no_rows(tmp_path: Path) -> None:
    write(tmp_path, 2000, shard_rows=500)
    store = Store.open(tmp_path)
    rows = store.image_rows(keys_of(2000))
    expected = store.image_features(rows)
    carried = pickle.dumps(store)
    assert len(carried) < 24 * 2000 + 20_000  # the index, not the 32 kB of rows on top
    assert np.array_equal(pickle.loads(carried).image_features(rows), expected)


def test_the_index_finds_every_key_and_no_other() -> None:
    keys = keys_of(5000)
    zeros = ["00" * 32, "ab" * 8 + "00" * 24]  # trailing zero bytes are part of a key
    rows = np.arange(5002) * 3
    index = KeyIndex(pack_keys([*keys, *zeros]), rows)
    assert np.array_equal(index.find(pack_keys([*keys, *zeros])), rows)
    assert np.all(index.find(pack_keys(keys_of(1000, start=5000))) == -1)
    assert np.all(index.find(pack_keys(["ab" * 8 + "00" * 7 + "01" * 17])) == -1)
    assert np.all(KeyIndex(pack_keys([]), np.empty(0, np.int64)).find(pack_keys(keys[:3])) == -1)


def test_keys_are_found_with_and_without_an_index(tmp_path: Path) -> None:
    keys = keys_of(60)
    with StoreWriter.open(tmp_path, INFO, shard_rows=16) as writer:
        for start in range(0, 60, 12):
            part = keys[start : start + 12]
            writer.add_images([*part, keys[0]], [*part, "again"], "clean", features_of(13, start))
        writer.add_texts(["one", "two", "one"], features_of(3))
    asked = [keys[31], keys[0], keys[59], keys[31]]  # one of them twice
    plain, indexed = Store.open(tmp_path), Store.open(tmp_path)
    indexed.index_images()
    indexed.index_texts()
    for store in (plain, indexed):
        assert store.image_rows(asked).tolist() == [33, 0, 63, 33]
        assert store.has_images([*asked, *keys_of(1, 99)]).tolist() == [True] * 4 + [False]
        assert len(store.image_rows([])) == 0
        assert store.text_rows(["two", "one", "two"]).tolist() == [1, 0, 1]
        assert store.text_rows_of(iter([["two"], [], ["one", "two"]])).tolist() == [1, 0, 1]
        with pytest.raises(
            AttarError, match=r"1 of 2 texts have no embedding .* \(first: text 2\)"
        ):
            store.text_rows_of([["one", "three"]])


def test_writing_again_fills_a_new_shard_and_keeps_the_old(tmp_path: Path) -> None:
    write(tmp_path, 10)
    before = (tmp_path / "img_emb" / "img_emb_0.npy").read_bytes()
    write(tmp_path, 10, start=100)
    assert (tmp_path / "img_emb" / "img_emb_0.npy").read_bytes() == before
    assert Store.open(tmp_path).has_images([*keys_of(10), *keys_of(10, 100)]).all()


def test_a_shard_is_committed_after_some_time_too(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, INFO, shard_rows=1000, commit_seconds=0) as writer:
        writer.add_images(keys_of(1), ["a"], "clean", features_of(1))
        assert Store.open(tmp_path).has_images(keys_of(1)).all()


def test_an_exception_keeps_what_the_teacher_already_said(tmp_path: Path) -> None:
    def interrupted() -> None:
        with StoreWriter.open(tmp_path, INFO) as writer:
            writer.add_images(keys_of(3), list("abc"), "clean", features_of(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert Store.open(tmp_path).has_images(keys_of(3)).all()


def test_another_teacher_is_refused_with_both_names_and_identities(tmp_path: Path) -> None:
    write(tmp_path, 3)
    other = replace(INFO, name="SigLIP", identity="cd" * 32)
    with (
        pytest.raises(UsageError, match=r"'ViT-Test' \(identity abababababab,.*'SigLIP'.*cdcdcdcd"),
        StoreWriter.open(tmp_path, other),
    ):
        pass
    changed = replace(INFO, identity="ef" * 32)
    with (
        pytest.raises(UsageError, match="same name, other weights or preprocessing"),
        StoreWriter.open(tmp_path, changed),
    ):
        pass
    with (
        pytest.raises(UsageError, match="holds float16 embeddings, float32 was asked"),
        StoreWriter.open(tmp_path, INFO, "float32"),
    ):
        pass
    assert Store.open(tmp_path).num_images == 3


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    with StoreWriter.open(tmp_path, INFO) as writer:
        writer.add_images(keys_of(3), list("abc"), "clean", features_of(3))
        writer.commit()
        with (
            pytest.raises(UsageError, match="is being written by another process") as refusal,
            StoreWriter.open(tmp_path, INFO),
        ):
            pass
        assert str(tmp_path) in str(refusal.value)
        assert Store.open(tmp_path).num_images == 3
    with StoreWriter.open(tmp_path, INFO) as writer:
        writer.add_images(keys_of(1, 50), ["d"], "clean", features_of(1))


def test_a_folder_that_is_no_store_is_never_touched(tmp_path: Path) -> None:
    published = tmp_path / "img_emb" / "img_emb_0.npy"
    published.parent.mkdir()
    np.save(published, features_of(3))
    with (
        pytest.raises(UsageError, match=r"holds img_emb/ but no store\.json"),
        StoreWriter.open(tmp_path, INFO),
    ):
        pass
    assert published.exists()
    with pytest.raises(UsageError, match=r"not a store .* attar embed"):
        Store.open(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        Store.open(tmp_path / "nowhere")


def test_leftovers_of_a_crash_are_ignored_and_then_removed(tmp_path: Path) -> None:
    write(tmp_path, 10)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    leftovers = [
        tmp_path / "img_emb" / "img_emb_1.npy",
        tmp_path / "img_emb" / ".img_emb_2.npy.17.partial",
        tmp_path / "metadata" / "metadata_7.parquet",
        tmp_path / f".store.json.{gone.pid}.partial",
    ]
    in_writing = tmp_path / f".files.parquet.{os.getppid()}.partial"
    for file in (*leftovers, in_writing):
        file.write_bytes(b"half a fi")
    assert Store.open(tmp_path).num_images == 10
    assert check_files(tmp_path) == ()
    write(tmp_path, 5, start=50)
    assert [file for file in leftovers[1:] if file.exists()] == []
    assert in_writing.exists()
    assert Store.open(tmp_path).has_images([*keys_of(10), *keys_of(5, 50)]).all()


def test_a_truncated_file_is_named_with_the_fix(tmp_path: Path) -> None:
    write(tmp_path, 23)
    file = tmp_path / "img_emb" / "img_emb_1.npy"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(AttarError, match=r"img_emb_1\.npy is damaged .*store verify .* --repair"):
        Store.open(tmp_path)
    file.unlink()
    with pytest.raises(AttarError, match=r"img_emb_1\.npy is damaged \(it is missing\)"):
        Store.open(tmp_path)


def test_an_embedding_that_is_not_finite_or_zero_names_its_image(tmp_path: Path) -> None:
    for value in (np.nan, np.inf, 0.0):
        features = features_of(3)
        features[1] = value
        with (
            pytest.raises(AttarError, match="zero or not finite for image 'b'"),
            StoreWriter.open(tmp_path / str(value), INFO) as writer,
        ):
            writer.add_images(keys_of(3), list("abc"), "clean", features)
        assert Store.open(tmp_path / str(value)).num_images == 0


def test_features_of_another_width_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(AttarError, match=r"shape \(2, 5\) for 2 images; expected \(2, 8\)"),
        StoreWriter.open(tmp_path, INFO) as writer,
    ):
        writer.add_images(keys_of(2), ["a", "b"], "clean", np.ones((2, 5)))


def test_a_view_keeps_its_definition(tmp_path: Path) -> None:
    definition = {"recipe": "domainbed", "size": 32, "seed": 0, "index": 0}
    with StoreWriter.open(tmp_path, INFO) as writer:
        writer.add_view("domainbed-32-0", definition)
        writer.add_images(keys_of(2), ["a", "b"], "domainbed-32-0", features_of(2))
    with StoreWriter.open(tmp_path, INFO) as writer:
        writer.add_view("domainbed-32-0", definition)
        with pytest.raises(UsageError, match="has view 'domainbed-32-0' drawn from"):
            writer.add_view("domainbed-32-0", {**definition, "size": 64})
    store = Store.open(tmp_path)
    assert store.views_of() == ("clean", "domainbed-32-0")
    assert store.has_images(keys_of(2), "domainbed-32-0").all()
    assert not store.has_images(keys_of(2)).any()


def test_info_of_a_store(tmp_path: Path) -> None:
    write(tmp_path, 23)
    info = store_info(tmp_path)
    assert info["teacher"] == "ViT-Test"
    assert info["views"] == {"clean": 23}
    assert (info["image_rows"], info["text_rows"], info["image_shards"]) == (23, 0, 3)
    files = [*tmp_path.glob("img_emb/*.npy"), *tmp_path.glob("metadata/*.parquet")]
    assert info["bytes"] == sum(file.stat().st_size for file in files)


def test_a_broken_or_newer_store_json_is_named(tmp_path: Path) -> None:
    write(tmp_path, 3)
    file = tmp_path / "store.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "version": 99}))
    with pytest.raises(UsageError, match="format version 99"):
        StoreInfo.read(tmp_path)
    file.write_text(json.dumps({**described, "teacher": {"name": "x"}}))
    with pytest.raises(AttarError, match="is incomplete"):
        StoreInfo.read(tmp_path)
    file.write_text(file.read_text()[:40])
    with pytest.raises(AttarError, match="is not valid JSON"):
        StoreInfo.read(tmp_path)
