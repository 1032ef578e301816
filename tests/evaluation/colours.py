"""Images of one colour and models that see only colour: every result can be worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attar.data.table import ImageTable
from attar.data.transforms import eval_transform
from attar.evaluation.models import EvaluatedModel
from attar.files import sha256_file

CLASSES = ("red", "green", "blue")
DOMAINS = ("photo", "sketch")
CLASS_FEATURES = np.eye(3, dtype=np.float32)
IMAGES = (
    ("photo", "red", (255, 0, 0)),
    ("photo", "green", (0, 255, 0)),
    ("photo", "blue", (0, 0, 255)),
    ("photo", "blue", (0, 40, 255)),
    ("sketch", "red", (0, 255, 0)),  # looks green
    ("sketch", "red", (255, 20, 0)),
    ("sketch", "green", (0, 255, 30)),
    ("sketch", "blue", (255, 0, 10)),  # looks red
)
COLOURS = np.array([colour for _, _, colour in IMAGES], dtype=np.float64) / 255


def write_images(root: Path) -> ImageTable:
    """Write IMAGES as domain/class/N.png and return their table."""
    paths = []
    for number, (domain, label, colour) in enumerate(IMAGES):
        path = root / domain / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), colour).save(path)
        paths.append(path)
    return ImageTable(
        paths=tuple(map(str, paths)),
        names=tuple(str(path.relative_to(root)) for path in paths),
        keys=tuple(map(sha256_file, paths)),
        labels=tuple(CLASSES.index(label) for _, label, _ in IMAGES),
        domains=tuple(DOMAINS.index(domain) for domain, _, _ in IMAGES),
        captions=(None,) * len(paths),
        splits=(None,) * len(paths),
        class_names=CLASSES,
        domain_names=DOMAINS,
        layout="domain/class/image",
    )


def unlabelled(table: ImageTable) -> ImageTable:
    none = (-1,) * len(table)
    return replace(table, labels=none, domains=none, class_names=(), domain_names=())


class ColourModel(torch.nn.Module):
    """[N, 3, H, W] uint8 -> the mean colour [N, 3], its channels in another order; counts calls."""

    def __init__(self, channels=(0, 1, 2)) -> None:
        super().__init__()
        self.channels = list(channels)
        self.images_seen = 0

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.images_seen += len(pixels)
        return (pixels.float() / 255).mean(dim=(2, 3))[:, self.channels]


def colour_model(role="student", network=None, **changes) -> EvaluatedModel:
    network = network or ColourModel()
    model = EvaluatedModel(
        name="colour",
        role=role,
        pretrained="none",
        dim=3,
        logit_scale=5.0,
        identity=f"colour {network.channels}",
        prepare=eval_transform(8, 1.0, "bilinear"),
        encode=network,
    )
    return replace(model, **changes)
