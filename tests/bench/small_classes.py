"""Six classes of coloured noise and a small teacher: enough to leave some classes out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tests.bench import small_grid
from tests.doubles import make_openclip_folder

from attar.data.splits import SplitConfig
from attar.files import write_json
from attar.run import RunConfig
from attar.training.config import TrainingConfig

NAMES = ("blue", "cyan", "green", "pink", "red", "yellow")
LR = 1e-3


def write_root(folder: Path) -> Path:
    """Write teacher/, pictures/CLASS/NUMBER.png and described.json."""
    make_openclip_folder(folder / "teacher", embed_dim=32, image_size=32, context_length=16)
    generator = np.random.default_rng(0)
    for place, name in enumerate(NAMES):
        for number in range(10):
            pixels = generator.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[..., place % 3] += np.uint8(40 * (1 + place // 3))
            path = folder / "pictures" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    write_json(folder / "described.json", {name: [f"a {name} thing"] for name in NAMES})
    return folder


def base_config(root: Path) -> RunConfig:
    """Return what all cells share; half of the classes are unseen."""
    return replace(
        small_grid.base_config(root),
        splits=SplitConfig(val_fraction=0.2, test_fraction=0.2, unseen_share=0.5),
        training=TrainingConfig(steps=2, batch_size=6, workers=0, precision="fp32"),
    )
