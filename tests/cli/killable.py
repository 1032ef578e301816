"""attar's real commands in processes that may be killed; they log every picture a teacher is asked.

As a program: `python -m tests.cli.killable LOG WORDS...` is `attar WORDS...`.
"""

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

# A server of forks imports all of it once.
import attar.pipeline
import attar.teachers.openclip
from attar.cli.main import main
from attar.data.images import read_image
from attar.data.sources import read_sources
from attar.store.store import Store
from attar.teachers.loading import FrozenTeacher
from attar.teachers.registry import load_teacher

PAUSE = "KILLABLE_PAUSE"
"""Variable of the environment: seconds that a teacher takes longer for a batch."""
CLOCK = {"time", "images_per_s", "data_wait"}


def run(words: Sequence[str], log: Path, screen: Path) -> None:
    """Give a command in a process of its own group; its screen goes to a file."""
    os.setsid()
    # As in a command: a child of a server would start its reading workers through it too.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    with screen.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    run_here(words, log)


def run_rank(words: Sequence[str], log: Path, screen: Path, launched: dict[str, str]) -> None:
    """Give a command as one of several processes, with the variables that torchrun sets."""
    os.environ.update(launched)
    run(words, log, screen)


def run_here(words: Sequence[str], log: Path) -> None:
    """Give a command; each picture's hash is in the log before the teacher is asked."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    encode = FrozenTeacher.encode_images

    def logged(self: FrozenTeacher, pixels: torch.Tensor) -> torch.Tensor:
        os.write(file, "".join(f"{picture_hash(one)}\n" for one in pixels).encode())
        time.sleep(float(os.environ.get(PAUSE, "0")))
        return encode(self, pixels)

    FrozenTeacher.encode_images = logged
    main(words)


def picture_hash(pixels: torch.Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def pictures(teacher: str, data: Path) -> dict[str, str]:
    """Return {hash of what the teacher sees: name} for the images of a folder or of tars."""
    prepare = load_teacher(teacher).prepare
    table = read_sources([data], unlabelled=True)
    return {
        picture_hash(prepare(read_image(path))): name
        for path, name in zip(table.paths, table.names, strict=True)
    }


def asked(log: Path, known: dict[str, str]) -> list[str]:
    """Return the images that were asked, in order; what is timed on no image is left out."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [known[line] for line in lines if line in known]


def committed(store: Path) -> list[str]:
    """Return the names of the images in a store's committed shards, row by row."""
    if not (store / "store.json").is_file():
        return []
    return [name for part in Store.open(store).iterate_images(1000) for name in part.names]


def assert_same_store(one: Path, other: Path) -> None:
    """Check that two stores hold the same rows, bit by bit, and each image once."""
    first, second = Store.open(one), Store.open(other)
    assert committed(one) == committed(other)
    assert len(set(committed(one))) == len(committed(one))
    for images, others in zip(
        first.iterate_images(10_000), second.iterate_images(10_000), strict=True
    ):
        np.testing.assert_array_equal(images.features, others.features)
    texts = np.arange(first.num_texts)
    assert first.num_texts == second.num_texts
    captions = first.captions(texts)
    assert captions == second.captions(texts)
    np.testing.assert_array_equal(first.text_features(captions), second.text_features(captions))


def assert_same_run(one: Path, other: Path) -> None:
    """Check that two runs ended in the same weights, metrics and results."""
    assert_same_store(one / "store", other / "store")
    for folder in ("student", "references/untrained", "references/projection-only"):
        expected, found = (load_file(run / folder / "model.safetensors") for run in (one, other))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected), folder
    assert metrics(one) == metrics(other), "metrics.jsonl"
    steps = [line["step"] for line in metrics(other) if line["split"] == "train"]
    assert steps == sorted(set(steps))
    assert results(one) == results(other), "results.jsonl"
    for file in ("calibration.json", "classes.json", "config.yaml", "set_aside.json"):
        assert (one / file).read_text() == (other / file).read_text(), file
    left = [path for path in other.rglob("*") if path.name.endswith((".partial", ".old"))]
    assert not left, left


def metrics(run: Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def results(run: Path) -> list[dict]:
    text = (run / "results.jsonl").read_text().replace(str(run), "RUN")
    return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    assert attar.pipeline is not None
    run_here(sys.argv[2:], Path(sys.argv[1]))
