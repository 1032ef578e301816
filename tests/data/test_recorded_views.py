import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as F

from attar.data.views import AUGMENTATIONS, RecordedView
from attar.errors import AttarError, UsageError


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((90, 60), Image.Resampling.BICUBIC)


def views(recipe, count=400):
    return [RecordedView.draw(recipe, "ab12", index, 0) for index in range(count)]


def plain(**changes):
    view = RecordedView(
        recipe="domainbed",
        area=1.0,
        ratio=1.0,
        x=0.0,
        y=0.0,
        flip=False,
        colour=(),
        grayscale=False,
        interpolation="bilinear",
    )
    return replace(view, **changes)


@pytest.mark.parametrize("recipe", AUGMENTATIONS)
def test_a_draw_is_a_pure_function_and_survives_json(recipe, photo):
    for view in views(recipe, 30):
        again = RecordedView.from_json(view.to_json())
        assert again == view
        assert again.to_json() == view.to_json()
        assert view.apply(photo, 24).tobytes() == again.apply(photo, 24).tobytes()
    assert views(recipe, 5) == views(recipe, 5)


def test_each_argument_changes_the_draw():
    drawn = {
        RecordedView.draw(*arguments)
        for arguments in (
            ("domainbed", "ab12", 0, 0),
            ("domainbed", "ab13", 0, 0),
            ("domainbed", "ab12", 1, 0),
            ("domainbed", "ab12", 0, 1),
            ("imagenet", "ab12", 0, 0),
        )
    }
    assert len(drawn) == 5


def test_draws_keep_to_the_recipe_and_fill_its_ranges():
    drawn = views("domainbed")
    areas = [v.area for v in drawn]
    assert 0.7 <= min(areas) < 0.75
    assert 0.95 < max(areas) <= 1
    assert all(3 / 4 <= v.ratio <= 4 / 3 for v in drawn)
    assert 0.4 < np.mean([v.flip for v in drawn]) < 0.6
    assert 0.05 < np.mean([v.grayscale for v in drawn]) < 0.16
    for name, low, high in (("brightness", 0.7, 1.3), ("hue", -0.3, 0.3)):
        factors = [dict(v.colour)[name] for v in drawn]
        assert low <= min(factors) < low + 0.03
        assert high - 0.03 < max(factors) <= high
    assert len({tuple(name for name, _ in v.colour) for v in drawn}) == 24  # all orders
    assert all(not v.colour and not v.grayscale for v in views("flip-crop"))
    assert "hue" not in dict(views("imagenet")[0].colour)


def test_the_plain_recipe_resizes_the_whole_image(photo):
    view = RecordedView.draw("none", "k", 0, 0)
    expected = photo.resize((20, 20), Image.Resampling.BILINEAR)
    assert view.apply(photo, 20).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(100, 100), (640, 480), (31, 500), (1, 1)])
def test_crops_lie_in_the_image_and_have_the_drawn_shape(size):
    width, height = size
    for view in views("flip-crop", 300):
        left, top, right, bottom = view.crop_box(width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if size == (100, 100):
            wanted = math.sqrt(view.area * view.ratio), math.sqrt(view.area / view.ratio)
            assert right - left == round(100 * wanted[0])
            assert bottom - top == round(100 * wanted[1])


def test_crops_reach_every_border():
    boxes = [view.crop_box(100, 100) for view in views("flip-crop", 2000)]
    assert min(b[0] for b in boxes) == min(b[1] for b in boxes) == 0
    assert max(b[2] for b in boxes) == max(b[3] for b in boxes) == 100


@pytest.mark.parametrize("factor", [-0.5, -0.3, -0.01, 0.0, 0.004, 0.29, 0.5])
def test_hue_equals_torchvisions(photo, factor):
    ours = plain(colour=(("hue", factor),)).apply(photo, 90)
    assert ours.tobytes() == F.adjust_hue(photo.resize((90, 90), 2), factor).tobytes()


def test_colours_are_applied_in_the_recorded_order_after_crop_and_flip(photo):
    colour = (("contrast", 1.3), ("hue", 0.2), ("brightness", 0.7), ("saturation", 1.2))
    view = plain(area=0.5, ratio=1.2, x=0.3, y=0.9, flip=True, colour=colour, grayscale=True)
    left, top, right, bottom = view.crop_box(*photo.size)
    expected = F.hflip(F.resized_crop(photo, top, left, bottom - top, right - left, [24, 24]))
    for name, factor in colour:
        expected = getattr(F, f"adjust_{name}")(expected, factor)
    expected = F.rgb_to_grayscale(expected, num_output_channels=3)
    assert view.apply(photo, 24).tobytes() == expected.tobytes()
    backwards = plain(colour=colour[::-1]).apply(photo, 24)
    assert backwards.tobytes() != plain(colour=colour).apply(photo, 24).tobytes()


def test_wrong_use_is_refused():
    with pytest.raises(UsageError, match="unknown augmentation 'imagnet': did you mean 'imagenet'"):
        RecordedView.draw("imagnet", "k", 0, 0)
    for text in ("not json", "{}", "[1]", json.dumps({"colour": [["hue"]]})):
        with pytest.raises(AttarError, match="not a recorded view"):
            RecordedView.from_json(text)
