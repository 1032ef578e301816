"""Random convolutions: what they keep, what they change, and their formula by hand."""

import pickle

import pytest
import torch

from attar.data.random_convolution import RandomConvolution
from attar.data.transforms import train_transform


@pytest.fixture
def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 24, 20), generator=generator, dtype=torch.uint8)


def test_it_changes_the_share_of_images_that_it_should(image: torch.Tensor) -> None:
    torch.manual_seed(0)
    augment = RandomConvolution(probability=0.25)
    same = sum(torch.equal(augment(image), image) for _ in range(400))
    assert same == pytest.approx(300, abs=30)
    assert torch.equal(RandomConvolution(probability=0.0)(image), image)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_it_is_the_papers_mixture(image: torch.Tensor, size: int) -> None:
    """Summed pixel by pixel, with the very weights that are drawn."""
    torch.manual_seed(3)
    got = RandomConvolution(probability=1.0, kernel_sizes=(size,))(image)
    torch.manual_seed(3)
    torch.rand(()), torch.randint(1, ())
    share, weights = torch.rand(()), torch.randn(3, 3, size, size) / (3 * size**2) ** 0.5
    x, half = (image.double() - 127.5) / 64, size // 2
    height, width = image.shape[1:]
    for row, column in [(0, 0), (5, 11), (height - 1, width - 1), (2, 0)]:
        total = torch.zeros(3, dtype=torch.float64)
        for i in range(size):
            for j in range(size):
                y, z = row + i - half, column + j - half
                if 0 <= y < height and 0 <= z < width:
                    total += weights[:, :, i, j].double() @ x[:, y, z]
        mixed = 64 * (share * x[:, row, column] + (1 - share) * total) + 127.5
        expected = mixed.clamp(0, 255)
        assert torch.allclose(got[:, row, column].double(), expected, atol=0.501)


def test_a_flat_image_stays_flat_within_and_changes_colour() -> None:
    flat = torch.full((3, 16, 16), 250, dtype=torch.uint8)
    torch.manual_seed(1)
    found = [RandomConvolution(probability=1.0)(flat)[:, 3:-3, 3:-3] for _ in range(20)]
    for image in found:
        assert (image == image[:, :1, :1]).all()
    colours = {tuple(image[:, 0, 0].tolist()) for image in found}
    assert len(colours) > 10


def test_the_scale_of_an_image_is_kept_on_average(image: torch.Tensor) -> None:
    """Var of a sum of 3 k² products with weights of variance 1 / (3 k²) is that of the image."""
    quiet = (image.float() / 8 + 112).to(torch.uint8)  # nothing is clipped
    torch.manual_seed(0)
    augment = RandomConvolution(probability=1.0, kernel_sizes=(3,))
    energy = torch.stack([(augment(quiet).float() - 127.5).square().mean() for _ in range(2000)])
    own = (quiet.float() - 127.5).square().mean()
    # E[α² + (1 - α)²] = 2/3, the cross term is 0, and the border has fewer pixels to sum.
    assert float(energy.mean() / own) == pytest.approx(2 / 3, rel=0.1)


def test_the_augmentation_is_domainbeds_with_it_behind(image: torch.Tensor) -> None:
    from torchvision.transforms.functional import to_pil_image

    picture = to_pil_image(image)
    transform = pickle.loads(pickle.dumps(train_transform("domainbed-randconv", 16)))
    different = 0
    for seed in range(20):
        torch.manual_seed(seed)
        first = train_transform("domainbed", 16)(picture)
        expected = RandomConvolution()(first)
        torch.manual_seed(seed)
        assert torch.equal(transform(picture), expected)
        different += not torch.equal(first, expected)
    assert 3 < different < 17
