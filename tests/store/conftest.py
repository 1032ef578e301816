"""A small real OpenCLIP teacher, real image files, and tables of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.doubles import make_openclip_folder, random_image
from tests.store.samples import table_of

from attar.data.table import ImageTable
from attar.teachers.base import Teacher
from attar.teachers.openclip import check_folder, load_openclip


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return make_openclip_folder(folder, embed_dim=32, image_size=32, context_length=8)


@pytest.fixture(scope="session")
def teacher(teacher_folder: Path) -> Teacher:
    return load_openclip(check_folder(str(teacher_folder)), torch.device("cpu"))


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[..., ImageTable]:
    def make(count: int = 20, root: str = "images", first_seed: int = 0) -> ImageTable:
        names = [f"class_{i % 3}/{i:03}.png" for i in range(count)]
        for i, name in enumerate(names):
            file = tmp_path / root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            random_image(first_seed + i, (48, 40)).save(file)
        return table_of(tmp_path / root, names)

    return make
