"""A small world of real images, teachers and class lists, and a way to give commands to attar."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.cli.commands import FAST, Give, Outcome, World, save_image
from tests.doubles import make_openclip_folder

from attar.cli.main import main


@pytest.fixture
def give(capfd: pytest.CaptureFixture[str]) -> Iterator[Give]:
    """Give a command in this process; words may be paths."""
    level = logging.getLogger("attar").level
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        return Outcome(stopped.value.code, *capfd.readouterr())

    yield run
    torch.set_num_threads(threads)
    logging.getLogger("attar").setLevel(level)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    shape = {"image_size": 32, "context_length": 8}
    make_openclip_folder(root / "teacher", embed_dim=32, **shape)
    make_openclip_folder(root / "other-teacher", embed_dim=48, **shape)
    for number in range(24):
        save_image(root / "flat" / f"{number:02}.png", number)
    shutil.copytree(root / "flat", root / "photos")
    add_broken_files(root / "photos")
    names = [(d, c) for d in ("art", "photo", "sketch") for c in ("cat", "dog")]
    for place, (domain, label) in enumerate(names):
        for number in range(6):
            file = root / "domains" / domain / label / f"{number}.png"
            save_image(file, 100 + 10 * place + number)
    (root / "classes.txt").write_text("cat\ndog\nhorse\n")
    (root / "empty").mkdir()
    for number in range(3):
        save_image(root / "one-class" / "cat" / f"{number}.png", 200 + number)
    return World(root)


def add_broken_files(folder: Path) -> None:
    whole = (folder / "00.png").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("this is no picture")
    (folder / "half.PNG").write_bytes(whole[: len(whole) // 2])
    (folder / "head.webp").write_bytes(b"RIFF\x00\x00\x00\x00WEBP")
    (folder / "gone.jpeg").symlink_to(folder / "nowhere.jpeg")


@pytest.fixture(scope="session")
def finished(world: World) -> Path:
    """A finished run of `feature-mse`, made and exported by one command."""
    out = world.root / "finished"
    vocabulary = world.root / "vocabulary.txt"
    vocabulary.write_text("house\ntree\nriver\n")
    words = ["--data", world.photos, "--classes", world.classes, "--teacher", world.teacher]
    words += ["--method", "feature-mse", "--out", out, "--training.steps=4"]
    words += ["--training.batch-size=8", *FAST]
    words += ["--export", "--export.vocabulary", vocabulary, "--export.parity-images=4"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `give` does: the number of threads decides the last bits
    with pytest.raises(SystemExit) as stopped:
        main(["distill", *map(str, words)])
    torch.set_num_threads(threads)
    assert stopped.value.code == 0
    return out


@pytest.fixture(scope="session")
def bundle(finished: Path) -> Path:
    return finished / "bundle"


@pytest.fixture
def copy_of_finished(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")
