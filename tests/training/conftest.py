from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_run import make_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with a store of random embeddings."""
    folder = tmp_path_factory.mktemp("training") / "images"
    make_images(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
