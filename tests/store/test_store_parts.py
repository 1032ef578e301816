"""What several processes wrote becomes one store, whatever was killed when."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from attar.errors import UsageError
from attar.files import sha256_text
from attar.store.layout import StoreInfo
from attar.store.parts import PARTS, SET_ASIDE, adopt_parts, part_of
from attar.store.store import Store
from attar.store.verify import check_files
from attar.store.writer import StoreWriter, store_lock
from attar.teachers.base import TeacherInfo

DIM = 8
TEACHER = TeacherInfo(name="ViT-Test", identity="ab" * 32, dim=DIM, logit_scale=50.0)
OTHER = TeacherInfo(name="ViT-Other", identity="cd" * 32, dim=DIM, logit_scale=50.0)
VIEW = {"recipe": "domainbed", "size": 32, "seed": 0, "index": 0}


def write(path: Path, numbers: range, view: str = "clean", teacher: TeacherInfo = TEACHER) -> None:
    with StoreWriter.open(path, teacher, shard_rows=4) as writer:
        if view != "clean":
            writer.add_view(view, VIEW)
        for number in numbers:
            features = np.eye(DIM)[[number % DIM]] + 0.1
            writer.add_images([sha256_text(str(number))], [f"{number}.png"], view, features)


def names(store: Path) -> list[str]:
    return [name for part in Store.open(store).iterate_images(100) for name in part.names]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    write(path, range(6))
    write(part_of(path, 2), range(12, 18))
    write(part_of(path, 10), range(18, 20), view="domainbed-32-0")
    write(part_of(path, 1), range(6, 12))
    return path


def test_parts_join_the_store_in_the_order_of_the_processes(store: Path) -> None:
    adopt_parts(store, TEACHER, "float16")
    assert names(store) == [f"{number}.png" for number in range(20)]
    assert check_files(store) == ()
    assert not (store / PARTS).exists()
    opened = Store.open(store)
    assert opened.info.views["domainbed-32-0"] == VIEW
    rows = opened.image_rows([sha256_text(str(number)) for number in range(18)])
    features = opened.image_features(rows)
    assert np.array_equal(features.argmax(axis=1), np.arange(18) % DIM)
    write(store, range(20, 30))
    assert check_files(store) == ()


def test_killed_before_the_parts_were_removed_it_takes_no_row_twice(store: Path) -> None:
    parts = shutil.copytree(store / PARTS, store.parent / "copy")
    adopt_parts(store, TEACHER, "float16")
    shutil.copytree(parts, store / PARTS)
    adopt_parts(store, TEACHER, "float16")
    assert names(store) == [f"{number}.png" for number in range(20)]


def test_killed_before_the_store_listed_them_it_loses_no_row(store: Path) -> None:
    before = (store / "store.json").read_text()
    parts = shutil.copytree(store / PARTS, store.parent / "copy")
    adopt_parts(store, TEACHER, "float16")
    (store / "store.json").write_text(before)
    shutil.copytree(parts, store / PARTS)
    adopt_parts(store, TEACHER, "float16")
    assert names(store) == [f"{number}.png" for number in range(20)]
    assert check_files(store) == ()


def test_a_part_that_is_being_written_is_left_alone(store: Path) -> None:
    with store_lock(part_of(store, 2)), pytest.raises(UsageError, match=r"2 is being written"):
        adopt_parts(store, TEACHER, "float16")
    adopt_parts(store, TEACHER, "float16")
    assert len(names(store)) == 20


def test_a_part_of_another_teacher_is_refused(store: Path) -> None:
    write(part_of(store, 3), range(3), teacher=OTHER)
    with pytest.raises(UsageError, match=r"parts/3 holds embeddings of teacher 'ViT-Other'"):
        adopt_parts(store, TEACHER, "float16")
    assert (part_of(store, 3) / "store.json").exists()


def test_what_processes_set_aside_is_named_once(store: Path) -> None:
    entries = [{"path": "/a.png", "reason": "old"}, {"path": "/b.png", "reason": "empty"}]
    (store / SET_ASIDE).write_text(json.dumps(entries))
    new = [{"path": "/a.png", "reason": "truncated"}, {"path": "/c.png", "reason": "empty"}]
    (part_of(store, 1) / SET_ASIDE).write_text(json.dumps(new))
    adopt_parts(store, TEACHER, "float16")
    found = {one["path"]: one["reason"] for one in json.loads((store / SET_ASIDE).read_text())}
    assert found == {"/a.png": "truncated", "/b.png": "empty", "/c.png": "empty"}


def test_a_part_without_a_store_is_removed(store: Path) -> None:
    (part_of(store, 4)).mkdir()
    adopt_parts(store, TEACHER, "float16")
    assert not (store / PARTS).exists()
    assert StoreInfo.read(store).counts["image_rows"] == 20
