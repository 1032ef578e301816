"""Random convolutions: an image whose shapes stay and whose textures and colours do not."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_MIDDLE, _SPREAD = 127.5, 64.0
"""What bytes are centred on and divided by before the convolution: about ImageNet's figures."""


@dataclass(frozen=True, kw_only=True)
class RandomConvolution:
    """Mix an image with its convolution by weights drawn anew (Xu et al., ICLR 2021).

    With probability `probability`, x becomes α x + (1 - α) (w * x) with α ~ U(0, 1), the kernel's
    side k drawn from `kernel_sizes` and its weights [3, 3, k, k] from N(0, 1 / (3 k²)), which keeps
    the scale of x (arXiv 2007.13003, RC_mix). The kernel is drawn for each image, and the paper's
    consistency loss is not part of it. Draws from torch's global generator.
    """

    probability: float = 0.5
    kernel_sizes: tuple[int, ...] = (1, 3, 5, 7)
    """Odd, in pixels of the image as it comes, whatever its size; the paper's."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return uint8 [3, H, W] of the same size."""
        if torch.rand(()) >= self.probability:
            return image
        size = self.kernel_sizes[int(torch.randint(len(self.kernel_sizes), ()))]
        share = torch.rand(())
        weights = torch.randn(3, 3, size, size) / (3 * size * size) ** 0.5
        centred = (image.to(torch.float32) - _MIDDLE) / _SPREAD
        filtered = F.conv2d(centred[None], weights, padding=size // 2)[0]
        mixed = share * centred + (1 - share) * filtered
        return (mixed * _SPREAD + _MIDDLE).round().clamp(0, 255).to(torch.uint8)
