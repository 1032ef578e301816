from pathlib import Path

import pytest
from tests.doubles import make_openclip_folder
from tests.stages.tiny_runs import CLASSES, distil, write_pictures


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suites")
    make_openclip_folder(folder / "teacher", embed_dim=32, image_size=32, context_length=8)
    make_openclip_folder(folder / "rival", embed_dim=24, image_size=48, context_length=8)
    write_pictures(folder / "seen", CLASSES, 6, seed=0)
    write_pictures(folder / "new", CLASSES, 3, seed=1000)
    (folder / "templates.txt").write_text("a drawing of a {c}\n")
    return folder


@pytest.fixture(scope="session")
def run(root: Path) -> Path:
    return distil(root, "run")
