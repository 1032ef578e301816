"""Tiny real runs, made once for all tests of the stages."""

from dataclasses import replace
from pathlib import Path

from tests.doubles import random_image

from attar import pipeline
from attar.data.splits import SplitConfig
from attar.evaluation.config import EvaluationConfig
from attar.run import DataConfig, RunConfig
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig

CLASSES = ("cat", "dog", "horse")
QUICK = EvaluationConfig(workers=0)


def write_pictures(folder: Path, classes: tuple[str, ...], each: int, seed: int) -> Path:
    for place, label in enumerate(classes):
        for number in range(each):
            path = folder / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            random_image(seed + 100 * place + number, (40, 36)).save(path)
    return folder


def distil(root: Path, name: str, **changes) -> Path:
    config = RunConfig(
        data=DataConfig(data=(root / "seen",), templates=str(root / "templates.txt")),
        teacher=f"local-dir:{root / 'teacher'}",
        student="mobilenetv3_small_050",
        method="feature-mse",
        splits=SplitConfig(val_fraction=0.2, test_fraction=0.3),
        student_config=StudentConfig(weights="none", image_size=32),
        training=TrainingConfig(steps=2, batch_size=4, workers=0, precision="fp32"),
        embed=EmbedConfig(workers=0),
        evaluation=QUICK,
    )
    return pipeline.distill(replace(config, **changes), root / name, estimated=False)
