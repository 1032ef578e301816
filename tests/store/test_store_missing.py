"""Which texts a store lacks: each once, in order, whatever the parts; and embedding from a file."""

import numpy as np
import pytest
from tests.store.samples import FAST

from attar.store import missing
from attar.store.embed import embed_texts
from attar.store.missing import count_missing_texts, missing_texts
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.teachers.base import Teacher, TeacherInfo

INFO = TeacherInfo(name="random", identity="0" * 64, dim=4, logit_scale=100.0)


@pytest.mark.parametrize("part", [1, 3, 7, 1000])
def test_each_missing_text_once_in_order(tmp_path, monkeypatch, part: int) -> None:
    monkeypatch.setattr(missing, "_PART", part)
    held = [f"text {i}" for i in range(0, 300, 7)]
    with StoreWriter.open(tmp_path / "store", INFO) as writer:
        writer.add_texts(held, np.random.default_rng(0).standard_normal((len(held), 4)))
    drawn = np.random.default_rng(1).integers(0, 300, 900)
    texts = [f"text {i}" for i in drawn]
    store = Store.open(tmp_path / "store")
    found = [text for some in missing_texts(store, iter(texts)) for text in some]
    assert found == [text for text in dict.fromkeys(texts) if text not in set(held)]
    assert count_missing_texts(None, texts) == len(set(texts))


def test_embedding_reads_texts_as_it_goes(tmp_path, teacher: Teacher) -> None:
    texts = [f"sentence {i % 30}" for i in range(50)]
    whole = Store.open(embed_texts(teacher, texts, tmp_path / "whole", FAST))
    asked = []

    def stream():
        for text in texts:
            asked.append(text)
            yield text

    streamed = Store.open(embed_texts(teacher, stream(), tmp_path / "streamed", FAST, missing=30))
    assert len(asked) == 50
    assert streamed.num_texts == whole.num_texts == 30
    np.testing.assert_array_equal(streamed.text_features(texts), whole.text_features(texts))
    rows = streamed.text_rows(texts)
    assert streamed.captions(rows) == texts
    np.testing.assert_array_equal(streamed.features_of_texts(rows), whole.text_features(texts))


@pytest.mark.parametrize(("batch", "start"), [(3, 0), (100, 0), (8, 11), (5, 29), (4, 30)])
def test_a_scan_gives_every_row_once(tmp_path, batch: int, start: int) -> None:
    features = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    with StoreWriter.open(tmp_path / "store", INFO, "float32", shard_rows=8) as writer:
        for at in range(0, 30, 5):
            writer.add_texts([f"{i}" for i in range(at, at + 5)], features[at : at + 5])
    store = Store.open(tmp_path / "store")
    rows, parts = start, []
    for first, part in store.scan_texts(batch, start):
        assert first == rows
        assert 0 < len(part) <= batch
        rows += len(part)
        parts.append(part)
    assert rows == 30
    if parts:
        expected = store.features_of_texts(np.arange(start, 30))
        np.testing.assert_array_equal(np.concatenate(parts), expected)
