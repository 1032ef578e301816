"""A small real OpenCLIP teacher whose context is 8 tokens."""

from pathlib import Path

import pytest
import torch
from tests.doubles import make_openclip_folder

from attar.teachers.base import Teacher
from attar.teachers.openclip import check_folder, load_openclip


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return make_openclip_folder(folder, embed_dim=32, image_size=32, context_length=8)


@pytest.fixture(scope="session")
def teacher(teacher_folder: Path) -> Teacher:
    return load_openclip(check_folder(str(teacher_folder)), torch.device("cpu"))
