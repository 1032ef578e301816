"""Tiny copies of published data sets in their real layouts, and answers worked out beside attar."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.doubles import random_image
from tests.stages.tiny_runs import QUICK

from attar import pipeline
from attar.evaluation.zero_shot import TASK
from attar.records import Record, read_records
from attar.run import DataConfig
from attar.stages.comparing import Comparison
from attar.store.store import Store
from attar.suites.config import SuiteConfig
from attar.suites.request import SuiteRequest
from attar.teachers.registry import load_teacher

SIZE = (44, 40)


def request(
    run: Path, out: Path, suite: str, data: Path | None = None, *, others=(), images=(), **options
) -> SuiteRequest:
    comparison = Comparison(
        run=run, data=DataConfig(data=tuple(images)), others=others, out=out, config=QUICK
    )
    config = SuiteConfig(suite=suite, suite_data=data, **options)
    return SuiteRequest(comparison=comparison, options=config)


def measure(*asked: Any, **options: Any) -> list[Record]:
    """Measure what `request` asks for."""
    wanted = request(*asked, **options)
    return read_records(pipeline.evaluate_suite(wanted.comparison, wanted.options))


def by_domain(records: Sequence[Record], role: str) -> dict[str, Record]:
    """Return a role's records of accuracies; what the model costs to run is another task."""
    return {r.domain: r for r in records if r.role == role and r.task == TASK}


def teacher_cosines(
    root: Path, run: Path, images: Sequence[Image.Image], prompts: Sequence[Sequence[str]]
) -> np.ndarray:
    """Return the teacher's cosines [N, C], class features as the run keeps them."""
    teacher = load_teacher(f"local-dir:{root / 'teacher'}")
    features = teacher.encode_images(torch.stack([teacher.prepare(image) for image in images]))
    store = Store.open(run / "store")
    means = [unit(store.text_features(list(of)).astype(np.float64)).mean(axis=0) for of in prompts]
    return unit(features.numpy().astype(np.float64)) @ unit(np.stack(means)).T


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def pictures(count: int, seed: int) -> list[Image.Image]:
    return [random_image(seed + number, SIZE) for number in range(count)]


def write_layout(
    folder: Path,
    class_names: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    *,
    images: Sequence[Image.Image],
    templates: Sequence[str] = ("a picture of a {c}.",),
    shards: int = 1,
) -> Path:
    """Write a data set as CLIP_benchmark's webdatasets lie on disk."""
    split = folder / "test"
    split.mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(class_names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    (split / "nshards.txt").write_text(f"{shards}\n")
    several = isinstance(labels, np.ndarray)
    if several:
        (folder / "dataset_type.txt").write_text("multilabel\n")
    for shard, rows in enumerate(np.array_split(np.arange(len(images)), shards)):
        files: dict[str, bytes] = {}
        for row in rows:
            files[f"{row:06}.png"] = png(images[row])
            files[f"{row:06}." + ("npy" if several else "cls")] = _label(labels[row])
        write_tar(split / f"{shard}.tar", files)
    return folder


def _label(label: object) -> bytes:
    if not isinstance(label, np.ndarray):
        return str(label).encode()
    file = io.BytesIO()
    np.save(file, label)
    return file.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
