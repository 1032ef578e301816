"""A grid small enough to run for real: three domains of coloured pictures and a small teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tests.doubles import make_openclip_folder

from attar.bench.config import DomainsConfig
from attar.data.splits import SplitConfig
from attar.evaluation.config import EvaluationConfig
from attar.run import DataConfig, RunConfig
from attar.store.config import EmbedConfig
from attar.students.config import StudentConfig
from attar.training.config import TrainingConfig

DOMAINS = ("art", "photo", "sketch")
CLASSES = {"blue": (40, 60, 230), "green": (30, 200, 50), "red": (220, 40, 30)}
PER_CLASS = 6
METHODS = ("erm", "feature-mse")
LRS = (1e-3, 1e-2)
COPY = ("art/red/4.png", "sketch/red/4.png")
"""Two names of the same bytes, in different domains; seed 0 puts both among the training images."""


def write_pictures(root: Path, classes: Mapping[str, tuple[int, int, int]] = CLASSES) -> Path:
    """Write DOMAINS × classes × PER_CLASS noisy pictures of 32 px, each domain with its light."""
    generator = np.random.default_rng(0)
    for light, domain in zip((0.6, 1.0, 1.4), DOMAINS, strict=True):
        for name, colour in classes.items():
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(PER_CLASS):
                noise = generator.normal(0, 30, (32, 32, 3))
                pixels = np.clip(light * np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    original, copy = COPY
    (root / copy).write_bytes((root / original).read_bytes())
    return root


def write_teachers(root: Path) -> Path:
    """Save one small teacher; `root`/strict-DOMAIN are other names of it."""
    folder = make_openclip_folder(root / "teacher", embed_dim=32, image_size=32, context_length=8)
    for domain in DOMAINS:
        (root / f"strict-{domain}").symlink_to(folder)
    return folder


def base_config(root: Path) -> RunConfig:
    """Return what all cells share."""
    return RunConfig(
        data=DataConfig(data=(root / "pictures",)),
        teacher=f"local-dir:{root / 'teacher'}",
        student="test_resnet",
        splits=SplitConfig(val_fraction=0.2, test_fraction=0.0),
        student_config=StudentConfig(image_size=32, weights="none"),
        # 3 x 5 images of each source domain: just the 15 that are trained on.
        training=TrainingConfig(
            steps=3, batch_size=5, sampler="per-domain", precision="fp32", workers=0
        ),
        embed=EmbedConfig(workers=0),
        evaluation=EvaluationConfig(workers=0),
    )


def grid_config(root: Path, **changes: object) -> DomainsConfig:
    """Return the whole grid, or another."""
    options = {
        "methods": METHODS,
        "lrs": LRS,
        "lr_domain": "photo",
        "strict_teacher": f"local-dir:{root}/strict-{{domain}}",
    }
    return DomainsConfig(**(options | changes))


@dataclass(frozen=True)
class FinishedGrid:
    """A grid that has been run, and what it did."""

    root: Path
    trained_on: dict[str, set[str]]
    """Cell -> names ("domain/class/file") of the images that its training read."""

    @property
    def out(self) -> Path:
        return self.root / "out"


def cell_files(results: Path) -> dict[str, Path]:
    """Name -> results file of every trained cell."""
    folder = results / "cells"
    found = sorted(folder.glob("*/*/seed*.json"))
    return {str(path.relative_to(folder).with_suffix("")): path for path in found}


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    """Read a Markdown table as row -> column -> text."""
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = split[0][1:]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in split[2:]}
