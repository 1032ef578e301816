import numpy as np
import pytest
from PIL import Image
from tests.doubles import random_image

from attar.errors import UsageError
from attar.suites.corruption_kinds import CANVAS, CORRUPTIONS, corrupt, on_canvas


def detailed(seed: int, size: tuple[int, int] = (260, 240)) -> Image.Image:
    """Return a picture with smooth colours and sharp edges, so that blur and noise both show."""
    blocks = np.random.default_rng(seed).integers(0, 2, (1 + size[1] // 6, 1 + size[0] // 6, 1))
    edges = np.kron(blocks, np.ones((6, 6, 1)))[: size[1], : size[0]] * 80 - 40
    smooth = np.asarray(random_image(seed, size), dtype=np.float64)
    return Image.fromarray(np.clip(smooth + edges, 0, 255).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def test_there_are_the_15_kinds_of_imagenet_c() -> None:
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_severity_is_farther_from_the_clean_picture(kind: str) -> None:
    images = [detailed(seed) for seed in range(2)]
    distances = []
    for severity in range(6):
        squares = [
            np.square(pixels(corrupt(image, kind, severity, key=str(n))) - pixels(on_canvas(image)))
            for n, image in enumerate(images)
        ]
        distances.append(float(np.mean(squares)))
    assert distances[0] == 0
    assert np.all(np.diff(distances) > 0), distances


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corrupted_picture_is_a_function_of_its_key_and_seed(kind: str) -> None:
    image = detailed(0)
    one = corrupt(image, kind, 3, key="a", seed=1)
    assert one.size == (CANVAS, CANVAS)
    assert one.mode == "RGB"
    assert corrupt(image, kind, 3, key="a", seed=1).tobytes() == one.tobytes()
    by_chance = {
        "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"
    }.isdisjoint({kind})  # fmt: skip
    assert (corrupt(image, kind, 3, key="b", seed=1).tobytes() != one.tobytes()) is by_chance
    assert (corrupt(image, kind, 3, key="a", seed=2).tobytes() != one.tobytes()) is by_chance


def test_the_canvas_is_the_centre_of_the_shorter_side_whatever_the_files_size() -> None:
    wide = Image.new("RGB", (300, 100), (255, 0, 0))
    wide.paste((0, 0, 255), (100, 0, 200, 100))
    assert np.asarray(on_canvas(wide))[:, 4:-4].reshape(-1, 3).max(axis=0).tolist() == [0, 0, 255]
    assert on_canvas(Image.new("RGB", (10, 700))).size == (CANVAS, CANVAS)


def test_noise_has_its_strength() -> None:
    grey = Image.new("RGB", (CANVAS, CANVAS), (128, 128, 128))
    assert pixels(corrupt(grey, "gaussian_noise", 1, key="")).std() == pytest.approx(0.07, abs=2e-3)
    changed = pixels(corrupt(grey, "impulse_noise", 5, key="")) != pixels(grey)
    assert changed.mean() == pytest.approx(0.27, abs=5e-3)
    # A shot is Poisson(60 x) / 60, of variance x / 60.
    shot = pixels(corrupt(grey, "shot_noise", 1, key="")).var()
    assert shot == pytest.approx(0.5 / 60, rel=0.1)


def test_wrong_use_is_said() -> None:
    with pytest.raises(UsageError, match="severity 6: give 1 to 5"):
        corrupt(detailed(0), "fog", 6, key="")
    with pytest.raises(UsageError, match="did you mean 'frost'"):
        corrupt(detailed(0), "forst", 1, key="")
