from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.store.samples import FAST

from attar.data.table import ImageTable
from attar.errors import AttarError, UsageError
from attar.store.embed import embed_images, embed_texts
from attar.store.importing import import_store, imported_teacher
from attar.store.layout import StoreInfo
from attar.store.store import Store
from attar.store.verify import check_files, repair_store, verify_store
from attar.store.writer import StoreWriter
from attar.teachers.base import Teacher


class Drifted:
    """The same teacher by name and identity, whose answers have moved."""

    def __init__(self, teacher: Teacher, share: float) -> None:
        self.info = teacher.info
        self.towers = teacher.towers
        self.prepare = teacher.prepare
        self._teacher = teacher
        self._share = share

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._move(self._teacher.encode_images(pixels))

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return self._teacher.encode_texts(texts)

    def _move(self, features: torch.Tensor) -> torch.Tensor:
        other = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        return features + self._share * other * features.norm(dim=1, keepdim=True)


@pytest.fixture
def table(make_table: Callable[..., ImageTable]) -> ImageTable:
    return make_table(25)


@pytest.fixture
def path(tmp_path: Path, teacher: Teacher, table: ImageTable) -> Path:
    path = embed_images(teacher, table, tmp_path / "store", replace(FAST, views=1, view_size=40))
    return embed_texts(teacher, [f"thing {i}" for i in range(12)], path, FAST)


def test_the_same_teacher_is_found_faithful_in_every_view(
    path: Path, teacher: Teacher, table: ImageTable
) -> None:
    report = verify_store(path, teacher, table, sample=1000)
    assert (report.images, report.texts) == (50, 12)
    assert report.worst_cosine > 0.9999
    assert str(report).startswith("50 images and 12 texts asked again: mean cosine 1.0000")
    small = verify_store(path, teacher, table.select(range(5)), sample=8)
    assert (small.images, small.texts) == (8, 8)


def test_drift_fails_and_names_the_worst(path: Path, teacher: Teacher, table: ImageTable) -> None:
    with pytest.raises(AttarError, match=r"has drifted .*'class_\d/\d+\.png.* has cosine 0\.\d+"):
        verify_store(path, Drifted(teacher, 0.1), table)
    slightly = verify_store(path, Drifted(teacher, 0.001), table)
    assert 0.999 < slightly.worst_cosine < 0.99999


def test_one_wrong_row_is_found_by_name(
    tmp_path: Path, teacher: Teacher, table: ImageTable, path: Path
) -> None:
    read = Store.open(path)
    features = read.image_features(read.image_rows(table.keys)).copy()
    features[17] = np.roll(features[17], 1)
    with StoreWriter.open(tmp_path / "wrong", teacher.info) as writer:
        writer.add_images(table.keys, table.names, "clean", features)
    with pytest.raises(AttarError, match=f"{table.names[17]}' .* 1 of 25 sampled are below"):
        verify_store(tmp_path / "wrong", teacher, table)


def test_another_teacher_or_other_images_are_wrong_use(
    path: Path, teacher: Teacher, table: ImageTable, make_table: Callable[..., ImageTable]
) -> None:
    other = Drifted(teacher, 0)
    other.info = replace(teacher.info, identity="00" * 32)
    with pytest.raises(UsageError, match="holds embeddings of teacher"):
        verify_store(path, other, table)
    with pytest.raises(UsageError, match="none of the 3 images given is in"):
        verify_store(path, teacher, make_table(3, root="others", first_seed=900))


def test_an_imported_store_is_verified_with_the_teacher_it_names(
    tmp_path: Path, path: Path, teacher: Teacher, table: ImageTable
) -> None:
    imported = tmp_path / "imported"
    import_store(path, table, imported, imported_teacher(path, teacher.info.name))
    assert verify_store(imported, teacher, table).worst_cosine > 0.999
    with pytest.raises(AttarError, match="has drifted"):
        verify_store(imported, Drifted(teacher, 0.2), table)


def test_a_changed_byte_is_found_and_repaired_by_embedding_again(
    path: Path, teacher: Teacher, table: ImageTable
) -> None:
    file = path / "img_emb" / "img_emb_2.npy"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    (damage,) = check_files(path)
    assert (damage.kind, damage.index, damage.file) == ("image", 2, file)
    with pytest.raises(AttarError, match=r"img_emb_2\.npy is damaged \(its checksum differs"):
        verify_store(path, teacher, table)
    views = {view: Store.open(path).has_images(table.keys, view) for view in ("clean",)}
    assert views["clean"].all()
    assert repair_store(path) == (damage,)
    assert not Store.open(path).has_images(table.keys).all()
    embed_images(teacher, table, path, replace(FAST, views=1, view_size=40))
    assert [shard.index for shard in StoreInfo.read(path).image_shards] == list(range(7))
    assert verify_store(path, teacher, table, sample=1000).images == 50


def test_truncated_and_missing_files_are_repaired_too(
    path: Path, teacher: Teacher, table: ImageTable
) -> None:
    truncated = path / "metadata" / "metadata_0.parquet"
    truncated.write_bytes(truncated.read_bytes()[:100])
    (path / "text_emb" / "text_emb_0.npy").unlink()
    assert {damage.kind for damage in check_files(path)} == {"image", "text"}
    repair_store(path)
    assert check_files(path) == ()
    store = Store.open(path)
    assert np.sum(~store.has_images(table.keys)) > 0
    assert store.has_texts([f"thing {i}" for i in range(12)]).sum() == 4
    assert not truncated.exists()


def test_a_store_being_written_is_not_repaired(path: Path, teacher: Teacher) -> None:
    with (
        StoreWriter.open(path, teacher.info),
        pytest.raises(UsageError, match="is being written by another process"),
    ):
        repair_store(path)
