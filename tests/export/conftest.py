from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_students import make_student

from attar.students.student import save_student


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[str]:
    """Twelve pictures of several shapes and kinds of file."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(12):
        width, height = [(90, 70), (64, 100), (131, 131), (80, 64)][number % 4]
        coarse = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        if number == 3:
            image = image.convert("CMYK")
        path = folder / f"{number}.{'png' if number % 3 == 0 and number != 3 else 'jpg'}"
        image.save(path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="session")
def resnet_folder(tmp_path_factory) -> Path:
    return save_student(make_student("resnet10t"), tmp_path_factory.mktemp("run") / "student")
