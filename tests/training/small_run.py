"""A small real run: coloured JPEG files, a store of random embeddings, a tiny timm student.

As a script it is one of several processes that train together: `small_run.py IMAGES RUN`.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from attar.data.splits import SourceSplits
from attar.data.table import ImageTable
from attar.errors import AttarError
from attar.files import sha256_file
from attar.losses import feature_mse
from attar.methods.base import FrozenClassFeatures, Objective, Phase
from attar.store.store import Store
from attar.store.writer import StoreWriter
from attar.students.config import StudentConfig
from attar.students.student import Student, build_student
from attar.teachers.base import TeacherInfo
from attar.training.config import TrainingConfig
from attar.training.feed import Feed
from attar.training.loop import train
from attar.types import Batch, Loss, Outputs

DIM, SIZE, CLASSES = 16, 32, 4


def make_images(folder: Path, count: int = 24) -> None:
    """Write `count` pictures in CLASSES colours and two domains, and a store that knows them."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 80, (40, 48, 3), dtype=np.uint8)
        pixels[..., i % 3] += np.uint8(40 * (i % CLASSES))
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg")
    table = read_table(folder)
    info = TeacherInfo(name="random", identity="0" * 64, dim=DIM, logit_scale=100.0)
    with StoreWriter.open(folder / "store", info) as writer:
        writer.add_images(table.keys, table.names, "clean", generator.standard_normal((count, DIM)))


def read_table(folder: Path) -> ImageTable:
    paths = sorted(folder.glob("*.jpg"))
    count = len(paths)
    return ImageTable(
        paths=tuple(map(str, paths)),
        names=tuple(path.name for path in paths),
        keys=tuple(map(sha256_file, paths)),
        labels=tuple(i % CLASSES for i in range(count)),
        domains=tuple(i % 2 for i in range(count)),
        captions=(None,) * count,
        splits=(None,) * count,
        class_names=tuple(f"class {i}" for i in range(CLASSES)),
        domain_names=("even", "odd"),
    )


def make_feed(folder: Path, config: TrainingConfig, *, count: int | None = None, **options) -> Feed:
    table = read_table(folder)
    table = table.select(range(count or len(table)))
    nothing = table.select([])
    source = SourceSplits(train=table, val=nothing, few_shot=nothing)
    return Feed(source, Store.open(folder / "store"), config, SIZE, **options)


def make_student(name: str = "test_resnet", *, dim: int = DIM, seed: int = 0, **options) -> Student:
    torch.manual_seed(seed)
    config = StudentConfig(weights="none", image_size=SIZE, **options)
    return build_student(name, dim, config)


def class_features() -> FrozenClassFeatures:
    generator = torch.Generator().manual_seed(1)
    return FrozenClassFeatures(torch.randn(CLASSES, DIM, generator=generator))


class ScaledMSE(Objective):
    """Feature distance with a learnt scale and noise, as a method with its own parameters has."""

    def __init__(self, kill_at: int | None = None, noise: float = 0.1) -> None:
        super().__init__()
        self.noise = noise
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.offset = nn.Parameter(torch.zeros(3, DIM))
        self.kill_at, self.calls = kill_at, 0
        self.fail_at: int | None = None

    def forward(
        self,
        outputs: Outputs,
        batch: Batch,
        class_features: Tensor | None,
        anchor: Outputs | None = None,
    ) -> Loss:
        self.calls += 1
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.fail_at:
            raise InterruptedError
        features = outputs.features + self.noise * torch.randn_like(outputs.features)
        if batch.image_features is None:
            raise AttarError("no image features")
        near = feature_mse(features + self.offset.mean(0), batch.image_features)
        return Loss(
            total=near * (1 + self.scale**2), terms={"near": near, "scale": self.scale.detach()}
        )


def two_phases(first: int = 5, second: int = 6, kill_at: int | None = None) -> tuple[Phase, ...]:
    objective = ScaledMSE(kill_at)
    return (
        Phase(name="align", objective=objective, trainable="projection", steps=first),
        Phase(name="distill", objective=objective, trainable="all", steps=second),
    )


def resumable_config(workers: int) -> TrainingConfig:
    return TrainingConfig(
        steps=11,
        batch_size=4,
        workers=workers,
        ema=0.9,
        clip_norm=1.0,
        checkpoint_every=2,
        validate_every=3,
        selection="best",
        log_every=2,
        precision="fp32",
    )


def project(student: Student) -> dict[str, float]:
    """A stand-in for validation: a number that depends on every weight, and disturbs the seed."""
    torch.rand(7)
    images = torch.linspace(0, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)
    return {"selection": float(student(images).features.detach().sum())}


def run_two_phases(images: Path, run: Path, workers: int, kill_at: int | None = None) -> Path:
    torch.set_num_threads(1)
    config = resumable_config(workers)
    return train(
        make_student(),
        two_phases(kill_at=kill_at),
        make_feed(images, config),
        class_features(),
        config,
        run,
        validate=project,
    )


def run_together(images: Path, run: Path, batch_size: int) -> Path:
    """Two steps of plain descent on frozen BatchNorm, where batches add up exactly."""
    torch.set_num_threads(1)
    config = TrainingConfig(
        steps=2,
        batch_size=batch_size,
        workers=0,
        optimizer="sgd",
        schedule="constant",
        warmup=0,
        lr=0.1,
        precision="fp32",
        ema=0.5,
    )
    phase = Phase(name="distill", objective=ScaledMSE(noise=0), trainable="all", steps=2)
    return train(
        make_student(freeze_bn=True),
        [phase],
        make_feed(images, config),
        class_features(),
        config,
        run,
        validate=project,
    )


if __name__ == "__main__":
    run_together(Path(sys.argv[1]), Path(sys.argv[2]), batch_size=4)
