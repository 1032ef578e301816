import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor

from attar.data.transforms import AUGMENTATIONS, eval_transform, train_transform
from attar.errors import UsageError


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((90, 60), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_train_transforms_give_bytes_of_the_size_and_repeat_with_the_seed(photo, name):
    transform = pickle.loads(pickle.dumps(train_transform(name, 32)))
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(transform(photo))
    assert outputs[0].shape == (3, 32, 32)
    assert outputs[0].dtype == torch.uint8
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) == (name == "none")


def test_the_domainbed_augmentation_is_domainbeds(photo):
    reference = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.PILToTensor(),
        ]
    )
    ours = train_transform("domainbed", 32)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = reference(photo)
        torch.manual_seed(seed)
        assert torch.equal(ours(photo), expected)


def test_flip_crop_keeps_colours(photo):
    white = Image.new("RGB", (50, 40), (255, 255, 255))
    assert (train_transform("flip-crop", 16)(white) == 255).all()
    torch.manual_seed(0)
    jittered = [train_transform("imagenet", 16)(white) for _ in range(10)]
    assert any((image < 255).any() for image in jittered)


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (64, 64), (33, 47), (20, 300)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
def test_eval_equals_torchvisions_resize_and_centre_crop(photo, shape, interpolation, crop_pct):
    image = photo.resize(shape)
    reference = transforms.Compose(
        [
            transforms.Resize(int(32 / crop_pct), InterpolationMode(interpolation)),
            transforms.CenterCrop(32),
        ]
    )
    ours = pickle.loads(pickle.dumps(eval_transform(32, crop_pct, interpolation)))
    assert torch.equal(ours(image), pil_to_tensor(reference(image)))


@pytest.mark.parametrize(("size", "crop_pct"), [(96, 0.875), (224, 0.9), (224, 0.95), (288, 0.96)])
def test_eval_is_timms_own_transform_to_the_pixel(photo, size, crop_pct):
    whole = photo.resize((400, 330))
    theirs = timm.data.create_transform(
        (3, size, size), interpolation="bicubic", crop_pct=crop_pct, mean=(0, 0, 0), std=(1, 1, 1)
    )
    ours = eval_transform(size, crop_pct, "bicubic")(whole)
    assert torch.equal(ours.float() / 255, theirs(whole))


def test_squash_is_domainbeds_evaluation_resize(photo):
    expected = transforms.Resize((32, 32))(photo)
    ours = eval_transform(32, 0.875, "bilinear", squash=True)
    assert torch.equal(ours(photo), pil_to_tensor(expected))


def test_wrong_use_is_refused():
    with pytest.raises(
        UsageError, match="unknown augmentation 'domain-bed': did you mean 'domainb"
    ):
        train_transform("domain-bed", 32)
    with pytest.raises(UsageError, match="unknown interpolation 'bicubik'"):
        eval_transform(32, 0.9, "bicubik")
    with pytest.raises(UsageError, match=r"crop_pct 1\.5"):
        eval_transform(32, 1.5, "bicubic")
    with pytest.raises(UsageError, match="image size 0"):
        train_transform("none", 0)
