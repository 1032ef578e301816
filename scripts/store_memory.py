"""Measure the memory of training beside stores of several sizes.

    python scripts/store_memory.py --rows 100000 1000000 5000000

For each size, a synthetic store (float16, 512 numbers a row) is written, and a process of its own
opens it and draws random batches, images and teacher features, from `attar.training.feed.Feed`:
once for a training set of fixed size whose images lie all over the store (does memory follow the
store?) and once for a training set as large as the store (what does an image cost?). Prints one
JSON line each: the peak of the process's resident memory, and what it was before the store was
opened. All images are one small picture in a tar, under as many addresses, so that the disk holds
little but the stores; these go to --folder and are removed.
"""

import argparse
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src")]

WIDTH, PART = 512, 16_384


def key_of(row: int) -> str:
    return hashlib.sha256(str(row).encode()).hexdigest()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_store(path: Path, rows: int) -> None:
    from attar.store.layout import CLEAN
    from attar.store.writer import StoreWriter
    from attar.teachers.base import TeacherInfo

    teacher = TeacherInfo(name="random", identity="0" * 64, dim=WIDTH, logit_scale=100.0)
    generator = np.random.default_rng(0)
    with StoreWriter.open(path, teacher, shard_rows=PART, commit_seconds=1e9) as writer:
        for start in range(0, rows, PART):
            numbers = range(start, min(start + PART, rows))
            features = generator.standard_normal((len(numbers), WIDTH), dtype=np.float32)
            names = [f"{row}.png" for row in numbers]
            writer.add_images([key_of(row) for row in numbers], names, CLEAN, features)


def make_tar(path: Path) -> Path:
    """Write a tar that holds one small picture; return its address without the name."""
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(picture, "PNG")
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("picture.png")
        member.size = len(picture.getvalue())
        archive.addfile(member, io.BytesIO(picture.getvalue()))
    return Path(f"{path}[512:{512 + member.size}]")


def measure(store: Path, image: Path, rows: int, images: int, batches: int, batch: int) -> None:
    """Draw batches in this process and print what it took."""
    import torch

    from attar.data.splits import SourceSplits
    from attar.data.table import ImageTable
    from attar.store.store import Store
    from attar.training.config import TrainingConfig
    from attar.training.feed import Feed, Place

    torch.set_num_threads(1)
    before = peak_mb()
    chosen = np.random.default_rng(1).permutation(rows)[:images].tolist()
    table = ImageTable(
        paths=tuple(f"{image}/{row:08}.png" for row in chosen),
        names=tuple(f"data-00000.tar/{row:08}.png" for row in chosen),
        keys=tuple(key_of(row) for row in chosen),
        labels=(-1,) * images,
        domains=(-1,) * images,
        captions=(None,) * images,
        splits=(None,) * images,
    )
    with_table = peak_mb()
    config = TrainingConfig(batch_size=batch, workers=0, augmentation="none")
    source = SourceSplits(train=table, val=table.select([]), few_shot=table.select([]))
    feed = Feed(source, Store.open(store), config, 32)
    began = time.monotonic()
    for drawn in feed.batches(range(1), "clean", Place(torch.device("cpu"))):
        assert drawn.image_features is not None
    opened = time.monotonic()
    for drawn in feed.batches(range(1, batches), "clean", Place(torch.device("cpu"))):
        assert drawn.image_features is not None
    measured = {
        "store rows": rows,
        "training images": images,
        "peak MB": round(peak_mb()),
        "of it torch and attar": round(before),
        "of it the table of images": round(with_table - before),
        "seconds to the first batch": round(opened - began, 1),
        "ms a batch": round((time.monotonic() - opened) / max(batches - 1, 1) * 1e3, 1),
        "store GB": round(sum(f.stat().st_size for f in store.rglob("*") if f.is_file()) / 1e9, 2),
    }
    print(json.dumps(measured), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--images", type=int, default=50_000, help="the fixed training set")
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where the stores are made and removed")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        store, image, rows, images = asked.measure
        measure(Path(store), Path(image), int(rows), int(images), asked.batches, asked.batch)
        return
    for rows in asked.rows:
        with tempfile.TemporaryDirectory(prefix="attar-memory-", dir=asked.folder) as name:
            store, image = Path(name) / "store", make_tar(Path(name) / "data-00000.tar")
            make_store(store, rows)
            for images in dict.fromkeys((min(asked.images, rows), rows)):
                words = [str(store), str(image), str(rows), str(images)]
                options = [f"--batches={asked.batches}", f"--batch={asked.batch}"]
                command = [sys.executable, __file__, *options, "--measure", *words]
                subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
