from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.store.samples import FAST

from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.store.embed import embed_images, embed_texts
from attar.store.importing import import_store, imported_teacher
from attar.store.paths import match_paths
from attar.store.store import Store
from attar.teachers.base import Teacher

DIM = 16


def features_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32) * 3


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def publish(
    folder: Path, paths: list[str], captions: list[str | None] | None = None, per_file: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Write a folder as clip-retrieval inference does; return image and text features."""
    images, texts = features_of(len(paths), 1), features_of(len(paths), 2)
    for name in ("img_emb", "metadata", *(["text_emb"] if captions else [])):
        (folder / name).mkdir(parents=True)
    for number, start in enumerate(range(0, len(paths), per_file)):
        part = slice(start, start + per_file)
        np.save(folder / "img_emb" / f"img_emb_{number:02}.npy", images[part].astype(np.float16))
        columns = {"image_path": paths[part]}
        if captions:
            np.save(folder / "text_emb" / f"text_emb_{number:02}.npy", texts[part])
            columns["caption"] = captions[part]
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number:02}.parquet")
    return images, texts


def test_embeddings_are_matched_by_relative_path_whatever_their_order(
    tmp_path: Path, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(20)
    order = np.random.default_rng(0).permutation(20)
    images, _ = publish(tmp_path / "published", [table.names[i] for i in order])
    teacher = imported_teacher(tmp_path / "published", "someone's ViT", logit_scale=70)
    report = import_store(tmp_path / "published", table, tmp_path / "store", teacher)
    assert (report.matched, report.unmatched, report.ambiguous, report.texts) == (20, (), (), 0)
    store = Store.open(tmp_path / "store")
    assert store.info.teacher.name == "someone's ViT"
    assert store.info.teacher.identity.startswith("imported:")
    assert (store.info.teacher.dim, store.info.teacher.logit_scale) == (DIM, 70)
    rows = store.image_rows([table.keys[i] for i in order])
    np.testing.assert_allclose(store.image_features(rows), unit(images), atol=2e-3)


def test_what_has_no_embedding_is_named_and_identical_files_are_stored_once(
    tmp_path: Path, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(8)
    Path(table.paths[1]).write_bytes(Path(table.paths[0]).read_bytes())
    keys = (table.keys[0], table.keys[0], *table.keys[2:])
    table = ImageTable(**{**vars(table), "keys": keys})
    publish(tmp_path / "published", ["other/000.png", *table.names[:6]])
    teacher = imported_teacher(tmp_path / "published", "x")
    report = import_store(tmp_path / "published", table, tmp_path / "store", teacher)
    assert report.matched == 6
    assert report.unmatched == table.names[6:]
    assert "6 images matched, 2 without embedding" in str(report)
    store = Store.open(tmp_path / "store")
    assert store.num_images == 5
    with pytest.raises(AttarError, match=r"2 of 8 images .*the store was imported"):
        store.image_rows(table.keys)


def test_texts_come_along_keyed_by_caption(
    tmp_path: Path, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(9)
    captions = [f"caption {i}" for i in range(9)]
    captions[4], captions[7] = captions[2], None
    _, texts = publish(tmp_path / "published", list(table.names), captions)
    teacher = imported_teacher(tmp_path / "published", "x")
    report = import_store(tmp_path / "published", table, tmp_path / "store", teacher)
    assert report.texts == 7
    store = Store.open(tmp_path / "store")
    read = store.text_features(["caption 8", "caption 2"])
    np.testing.assert_allclose(read, unit(texts)[[8, 2]], atol=2e-3)
    again = import_store(tmp_path / "published", table, tmp_path / "store", teacher)
    assert again.texts == 7
    assert (Store.open(tmp_path / "store").num_images, store.num_texts) == (9, 7)


def test_a_store_of_attar_can_be_published_as_it_is(
    tmp_path: Path, teacher: Teacher, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(10)
    path = embed_images(teacher, table, tmp_path / "one", FAST)
    embed_texts(teacher, ["a dog", "a cat", "a cow"], path, FAST)
    info = imported_teacher(path, teacher.info.name)
    report = import_store(path, table, tmp_path / "two", info)
    assert (report.matched, report.texts) == (10, 3)
    one, two = Store.open(path), Store.open(tmp_path / "two")
    a, b = (store.image_features(store.image_rows(table.keys)) for store in (one, two))
    np.testing.assert_allclose(a.astype(float), b.astype(float), atol=1e-3)
    np.testing.assert_allclose(
        one.text_features(["a cow"]).astype(float),
        two.text_features(["a cow"]).astype(float),
        atol=1e-3,
    )


def test_other_embeddings_have_another_identity(
    tmp_path: Path, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(4)
    publish(tmp_path / "a", list(table.names))
    publish(tmp_path / "b", list(table.names))
    np.save(tmp_path / "b" / "img_emb" / "img_emb_00.npy", features_of(4, seed=9))
    a, b = (imported_teacher(tmp_path / name, "x") for name in "ab")
    assert a.identity != b.identity
    import_store(tmp_path / "a", table, tmp_path / "store", a)
    with pytest.raises(UsageError, match=r"identity imported:.*same name, other weights"):
        import_store(tmp_path / "b", table, tmp_path / "store", b)


def test_what_cannot_be_matched_or_aligned_is_refused(
    tmp_path: Path, make_table: Callable[..., ImageTable]
) -> None:
    table = make_table(4)
    with pytest.raises(UsageError, match=r"holds no img_emb/\*\.npy"):
        imported_teacher(tmp_path, "x")
    folder = tmp_path / "published"
    publish(folder, [f"elsewhere/{i}.jpg" for i in range(4)])
    teacher = imported_teacher(folder, "x")
    with pytest.raises(UsageError, match=r"none of the 4 images .*'class_0/000.png'.*elsewhere"):
        import_store(folder, table, tmp_path / "store", teacher)
    metadata = folder / "metadata" / "metadata_00.parquet"
    pq.write_table(pa.table({"image_path": list(table.names[:3])}), metadata)
    with pytest.raises(UsageError, match=r"has 3 rows but .* has 4"):
        import_store(folder, table, tmp_path / "store", teacher)
    pq.write_table(pa.table({"url": list(table.names)}), metadata)
    with pytest.raises(UsageError, match="no column 'image_path' \\(it has url\\)"):
        import_store(folder, table, tmp_path / "store", teacher)
    metadata.unlink()
    with pytest.raises(UsageError, match=r"no metadata_0\.parquet"):
        import_store(folder, table, tmp_path / "store", teacher)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("names", "published", "found", "unmatched", "ambiguous"),
    [
        (["dog/1.jpg"], ["cat/1.jpg", "dog/1.jpg"], {0: 1}, (), ()),
        (["dog/1.jpg"], ["/data/pets/dog/1.jpg", "/data/pets/cat/1.jpg"], {0: 0}, (), ()),
        (["pets/dog/1.jpg"], ["dog/1.jpg"], {0: 0}, (), ()),
        (["dog/1.jpg"], ["a/dog/1.jpg", "b/dog/1.jpg"], {}, (), (0,)),
        (["dog/1.jpg", "cat/1.jpg"], ["1.jpg"], {}, (), (0, 1)),
        (["1.jpg", "x/1.jpg"], ["1.jpg"], {0: 0}, (), (1,)),
        (["dog/1.jpg"], ["hotdog/1.jpg", "dog/1.jpeg"], {}, (0,), ()),
        (["dog/1.jpg"], ["dog\\1.jpg"], {0: 0}, (), ()),
        (["dog/1.jpg"], ["./dog/1.jpg"], {0: 0}, (), ()),
        (["dog/1.jpg"], ["dog/1.jpg", "dog/1.jpg"], {}, (), (0,)),
        (["train/1.jpg"], ["val/1.jpg"], {}, (0,), ()),
    ],
)
def test_paths_match_exactly_or_by_a_unique_ending(
    names: list[str],
    published: list[str],
    found: dict[int, int],
    unmatched: tuple[int, ...],
    ambiguous: tuple[int, ...],
) -> None:
    matches = match_paths(names, published)
    assert (matches.found, matches.unmatched, matches.ambiguous) == (found, unmatched, ambiguous)
