from pathlib import Path

import pytest
import torch
from PIL import Image

from attar.export.bundle import export_bundle
from attar.export.config import BundleFacts, ExportConfig
from attar.runtime.bundle import Bundle
from attar.runtime.predict import Predictor
from attar.students.config import StudentConfig
from attar.students.student import build_student, save_student

SCALE = 2.0
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
SEA = "a photo of a Cyan sea."
OTHERS = {"dark_grey": (40, 40, 40), "white": (250, 250, 250), SEA: (0, 200, 200)}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder with one picture of every colour, named after it."""
    folder = tmp_path_factory.mktemp("pictures")
    for text, colour in {**COLOURS, **OTHERS}.items():
        name = "cyan" if text == SEA else text
        Image.new("RGB", (80, 60), colour).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory, pictures) -> Path:
    """A bundle whose class features are the student's own (centred) features of flat colours.

    So its answers are known without training: a picture of a colour is of that class.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundle")
    config = StudentConfig(weights="none", image_size=64)
    student = build_student("test_vit", 32, config, teacher="pocket").eval()
    colours = torch.tensor([*COLOURS.values(), *OTHERS.values()]) / 255
    with torch.no_grad():
        images = colours[:, :, None, None].expand(-1, -1, 64, 64)
        student.projection().bias.sub_(student(images).features.mean(dim=0))
        features = student(images).features.numpy()
    save_student(student, folder / "student")
    names = list(COLOURS)
    return export_bundle(
        folder / "student",
        folder / "bundle",
        class_features=features[: len(names)],
        class_names=names,
        sample_images=[str(path) for path in sorted(pictures.iterdir())],
        config=ExportConfig(),
        extras=BundleFacts(teacher="pocket", logit_scale=SCALE),
        vocabulary=(list(OTHERS), features[len(names) :]),
    )


@pytest.fixture
def predictor(bundle_path) -> Predictor:
    return Predictor(Bundle.open(bundle_path))
