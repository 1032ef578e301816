"""What needs each of the teacher's features once reads them part by part, and says the same."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from attar.data.table import ImageTable
from attar.errors import AttarError
from attar.evaluation.baselines import constant_mean
from attar.evaluation.class_embeddings import class_means
from attar.evaluation.metrics import ROWS_AT_ONCE
from attar.evaluation.models import feature_parts, features_from_store
from attar.losses import aligned
from attar.run import RunFolder
from attar.stages import label_weight
from attar.stages.measuring import open_references
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.students.config import StudentConfig
from attar.students.student import build_student, save_student
from attar.teachers.base import TeacherInfo

IMAGES, DIM, CLASSES = 2 * ROWS_AT_ONCE + 100, 4, 3


class NotedStore(Store):
    """A store that notes how many rows are read at a time."""

    def image_features(self, rows):
        self.__dict__.setdefault("read", []).append(len(rows))
        return super().image_features(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts") / "store"


@pytest.fixture(scope="module")
def table(folder: Path) -> ImageTable:
    """The images of a store, in another order than there."""
    keys = [hashlib.sha256(bytes(str(i), "ascii")).hexdigest() for i in range(IMAGES)]
    generator = np.random.default_rng(0)
    features = generator.standard_normal((IMAGES, DIM)) + 0.3
    info = TeacherInfo(name="random", identity="0" * 64, dim=DIM, logit_scale=10.0)
    with StoreWriter.open(folder, info, shard_rows=5000) as writer:
        writer.add_images(keys, keys, "clean", features)
    names = tuple(keys[i] for i in generator.permutation(IMAGES))
    return ImageTable(
        paths=names,
        names=names,
        keys=names,
        labels=tuple(generator.integers(-1, CLASSES, IMAGES).tolist()),
        domains=(-1,) * IMAGES,
        captions=(None,) * IMAGES,
        splits=(None,) * IMAGES,
        class_names=("a", "b", "c"),
        domain_names=(),
    )


@pytest.fixture
def store(folder: Path, table: ImageTable) -> NotedStore:
    return NotedStore.open(folder)


def test_parts_are_the_whole_and_none_is_larger_than_asked(store, table):
    parts = list(feature_parts(store, table))
    assert store.read == [ROWS_AT_ONCE, ROWS_AT_ONCE, 100]
    np.testing.assert_array_equal(np.concatenate(parts), features_from_store(store, table))
    assert [len(part) for part in feature_parts(store, table.select(range(7)), 3)] == [3, 3, 1]


def test_images_that_the_store_lacks_are_named(store, table):
    other = ImageTable(**{**table.__dict__, "keys": ("f" * 64, *table.keys[1:])})
    with pytest.raises(AttarError, match=f"1 of {IMAGES:,} images have no 'clean' embedding"):
        next(feature_parts(store, other))


def test_the_constant_mean_of_a_run_is_that_of_all_its_images(store, table, tmp_path):
    run = RunFolder(tmp_path)
    student = build_student("test_resnet", DIM, StudentConfig(weights="none", image_size=32))
    for name in ("untrained", "projection-only"):
        save_student(student, tmp_path / "references" / name)
    found = open_references(run, store, table, alone=True)[-1].lookup(table.select([0]))[0]
    assert max(store.read) <= ROWS_AT_ONCE
    assert sum(store.read) == IMAGES
    whole = features_from_store(store, table).astype(np.float64)
    mean = (whole / np.linalg.norm(whole, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), rtol=1e-6)


def test_a_mean_of_nothing_is_refused(store, table):
    with pytest.raises(AttarError, match="no teacher features"):
        constant_mean(feature_parts(store, table.select([])))


def test_class_means_in_parts_are_those_of_the_whole(store, table):
    whole, labels = features_from_store(store, table), np.asarray(table.labels)
    found = class_means(feature_parts(store, table, 1000), labels, table.class_names)
    np.testing.assert_allclose(found, class_means([whole], labels, table.class_names), rtol=1e-9)


def test_the_teacher_is_as_often_right_in_parts(store, table):
    classes = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
    found = label_weight._right(store, table, classes)
    assert max(store.read) <= ROWS_AT_ONCE
    whole = torch.from_numpy(features_from_store(store, table))
    assert torch.equal(found, aligned(whole, classes, torch.tensor(table.labels)))
    assert 0 < found.sum() < IMAGES
