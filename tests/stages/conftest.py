from pathlib import Path

import pytest
from tests.doubles import make_openclip_folder, random_image
from tiny_runs import CLASSES, distil, write_pictures

from attar import pipeline
from attar.export.config import ExportConfig


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparing")
    shape = {"embed_dim": 32, "context_length": 8}
    make_openclip_folder(folder / "teacher", image_size=32, **shape)
    # Of the same width, but it sees images at another size: another teacher.
    make_openclip_folder(folder / "other-teacher", image_size=48, **shape)
    write_pictures(folder / "seen", CLASSES, 6, seed=0)
    write_pictures(folder / "new", CLASSES, 2, seed=1000)
    write_pictures(folder / "part", CLASSES[:2], 2, seed=2000)
    write_pictures(folder / "other-classes", ("boat", "tree"), 2, seed=3000)
    for number in range(4):
        path = folder / "flat" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        random_image(4000 + number, (40, 36)).save(path)
    (folder / "templates.txt").write_text("a drawing of a {c}\na {c} on paper\n")
    return folder


@pytest.fixture(scope="session")
def run(root: Path) -> Path:
    return distil(root, "run")


@pytest.fixture(scope="session")
def other_run(root: Path) -> Path:
    return distil(root, "other-run", teacher=f"local-dir:{root / 'other-teacher'}")


@pytest.fixture(scope="session")
def plain_run(root: Path) -> Path:
    return distil(root, "plain-run", method="erm", teacher=None)


@pytest.fixture(scope="session")
def bundle(root: Path, run: Path) -> Path:
    config = ExportConfig(parity_images=2)
    return pipeline.export(run, root / "shipped" / "bundle", config)
