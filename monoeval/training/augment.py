"""Random views of a whole batch at once, on the device where the images are."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop, small rotation, and jitter of brightness and contrast, drawn for each image.

    There is no flip unless asked for: a mirrored digit is another symbol.
    """

    crop: float = 0.4
    """The smallest share of the area that is kept; the largest is 1."""
    rotation: float = 15.0
    """Degrees, either way."""
    jitter: float = 0.4
    """Brightness and contrast are multiplied by 1 ± jitter."""
    flip: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [B, 3, S, S] to float32 of the same shape in [0, 1].

        All draws come from `generator`, a CPU one, so that they are the same whatever the device.
        """
        count = len(images)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count).uniform_(low, high, generator=generator)

        side = uniform(self.crop, 1.0).sqrt()
        aspect = uniform(-math.log(4 / 3), math.log(4 / 3)).exp().sqrt()
        wide, high = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
        angle = uniform(-self.rotation, self.rotation).deg2rad()
        sideways, down = uniform(-1, 1) * (1 - wide), uniform(-1, 1) * (1 - high)
        if self.flip:
            wide = wide * (uniform(0, 1) < 0.5).float().mul(2).sub(1)
        sine, cosine = angle.sin(), angle.cos()
        affine = torch.stack(
            [wide * cosine, -high * sine, sideways, wide * sine, high * cosine, down], dim=1
        ).view(count, 2, 3)
        brightness = uniform(1 - self.jitter, 1 + self.jitter).view(-1, 1, 1, 1).to(images.device)
        contrast = uniform(1 - self.jitter, 1 + self.jitter).view(-1, 1, 1, 1).to(images.device)

        pixels = images.float().div_(255)
        grid = F.affine_grid(affine.to(images.device), list(pixels.shape), align_corners=False)
        views = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        grey = views.mean(dim=(1, 2, 3), keepdim=True)
        return ((views - grey) * contrast + grey).mul_(brightness).clamp_(0, 1)
