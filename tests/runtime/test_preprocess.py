import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from attar.data.images import read_image
from attar.data.transforms import eval_transform
from attar.errors import UsageError
from attar.runtime.preprocess import Preprocess, find_images, load_inputs

SHAPES = [(100, 75), (75, 100), (64, 64), (33, 201), (301, 47)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("squash", [False, True])
def test_pixels_equal_those_of_torchs_transform(interpolation, squash):
    rng = np.random.default_rng(0)
    for (width, height), size, crop_pct in itertools.product(
        SHAPES, [64, 75], [0.875, 0.9, 0.95, 1.0]
    ):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        own = Preprocess(
            image_size=size,
            crop_pct=crop_pct,
            interpolation=interpolation,
            resize_mode="squash" if squash else "shortest",
        )(image)
        theirs = eval_transform(size, crop_pct, interpolation, squash=squash)(image).numpy()
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, theirs.astype(np.float32) / 255, atol=1e-6)


def test_json_and_pickle_keep_it():
    own = Preprocess(image_size=96, crop_pct=0.9, interpolation="lanczos")
    values = {
        "image_size": 96,
        "crop_pct": 0.9,
        "interpolation": "lanczos",
        "resize_mode": "shortest",
        "mean": [0.5, 0.5, 0.5],
    }
    assert Preprocess.from_json(values) == own
    assert pickle.loads(pickle.dumps(own)) == own


def test_unknown_settings_are_refused():
    with pytest.raises(UsageError, match="did you mean 'bicubic'"):
        Preprocess(image_size=96, crop_pct=0.9, interpolation="bicubics")
    with pytest.raises(UsageError, match="resize mode"):
        Preprocess(image_size=96, crop_pct=0.9, interpolation="bicubic", resize_mode="longest")


def test_awkward_files_are_read_as_by_the_data_code(tmp_path):
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (80, 90, 4), dtype=np.uint8), "RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.convert("RGB").save(tmp_path / "turned.JPG", exif=exif)
    colours.convert("CMYK").save(tmp_path / "cmyk.jpg")
    colours.save(tmp_path / "alpha.png")
    deep = rng.integers(0, 65536, (80, 90), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    frames = [colours.convert("P"), colours.rotate(90).convert("P")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "cut.png").write_bytes((tmp_path / "alpha.png").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("not a picture")
    paths = find_images([tmp_path])
    assert len(paths) == 7
    prepare = Preprocess(image_size=64, crop_pct=1.0, interpolation="bicubic")
    pixels, failures = load_inputs(paths, prepare)
    assert {paths[position].name for position in failures} == {"cut.png", "text.jpg"}
    readable = [path for position, path in enumerate(paths) if position not in failures]
    transform = eval_transform(64, 1.0, "bicubic")
    expected = [transform(read_image(path)).numpy() for path in readable]
    np.testing.assert_allclose(pixels, np.stack(expected).astype(np.float32) / 255, atol=1e-6)


def test_no_readable_image_gives_no_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    prepare = Preprocess(image_size=64, crop_pct=1.0, interpolation="bicubic")
    pixels, failures = load_inputs([tmp_path / "a.png"], prepare)
    assert pixels is None
    assert list(failures) == [0]


def test_files_come_as_given_and_folders_sorted(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "b/.hidden.txt", "a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = find_images([tmp_path / "b", tmp_path / "a.png"])
    assert [path.name for path in found] == ["1.JPG", "2.png", "a.png"]
    with pytest.raises(UsageError, match="no images were given"):
        find_images([])


def test_what_a_mac_adds_to_a_folder_is_no_image(tmp_path):
    for name in ("a.jpg", "._a.jpg", "__MACOSX/a.jpg", ".thumbnails/a.jpg", "in/b.jpg"):
        (tmp_path / ".home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".home" / name).touch()
    found = find_images([tmp_path / ".home"])
    assert [str(path.relative_to(tmp_path / ".home")) for path in found] == ["a.jpg", "in/b.jpg"]
