import pytest
from colours import write_images

from attar.data.table import ImageTable


@pytest.fixture
def table(tmp_path) -> ImageTable:
    return write_images(tmp_path / "images")
