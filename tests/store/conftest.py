"""A small real OpenCLIP teacher, real image files, and tables of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from attar.data.table import ImageTable
from attar.files import sha256_file
from attar.store.config import EmbedConfig
from attar.teachers.base import Teacher
from attar.teachers.openclip import check_folder, load_openclip
from doubles import make_openclip_folder, random_image

FAST = EmbedConfig(batch_size=4, workers=0, shard_rows=8)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return make_openclip_folder(folder, embed_dim=32, image_size=32, context_length=8)


@pytest.fixture(scope="session")
def teacher(teacher_folder: Path) -> Teacher:
    return load_openclip(check_folder(str(teacher_folder)), torch.device("cpu"))


def table_of(root: Path, names: Sequence[str]) -> ImageTable:
    """Describe the files `names` under `root`, as reading a folder would."""
    paths = [root / name for name in names]
    none = (None,) * len(names)
    return ImageTable(
        paths=tuple(str(path) for path in paths),
        names=tuple(names),
        keys=tuple(sha256_file(path) for path in paths),
        labels=(-1,) * len(names),
        domains=(-1,) * len(names),
        captions=none,
        splits=none,
    )


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
