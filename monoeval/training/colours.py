"""Changes of colour and sharpness, one strength an image, on the device where the images are.

Images are float32 [B, 3, H, W] in [0, 1], and strengths [B]; what comes out is new and in the same range. The
formulas are those of torchvision's functions for float images, which take one strength for a whole batch.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (0.2989, 0.587, 0.114)
BLUR_RADIUS = 6
"""Pixels: three times the largest deviation that `simclr` views draw."""


def grey(images: Tensor) -> Tensor:
    """The luminance (ITU-R BT.601) in all three channels."""
    return _luminance(images).expand_as(images)


def brighter(images: Tensor, factor: Tensor) -> Tensor:
    return (images * _column(factor)).clamp_(0, 1)


def more_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from each image's mean luminance by `factor`."""
    middle = _luminance(images).mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(middle, images, _column(factor)).clamp_(0, 1)


def more_saturated(images: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's luminance by `factor`."""
    return torch.lerp(_luminance(images), images, _column(factor)).clamp_(0, 1)


def turned_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Hue of HSV moved by `turn` of the whole circle."""
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    sixths = torch.where(chroma > 0, sixths, 0) + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        place = (sixths + offset).remainder_(6)
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, dim=1)


def blurred(images: Tensor, deviation: Tensor) -> Tensor:
    """Gaussian blur of `deviation` pixels, cut off at `BLUR_RADIUS` and mirrored at the edges."""
    return resampled(
        images, *(blur_matrix(side, deviation.to(images.device)) for side in (images.shape[2], images.shape[3]))
    )


def resampled(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows of pixels mixed by `rows` [B, S, H] and columns by `columns` [B, T, W], to [B, 3, S, T]."""
    count, channels, high, before = images.shape
    across = torch.bmm(images.reshape(count, channels * high, before), columns.transpose(1, 2))
    wide = columns.shape[1]
    side_by_side = across.view(count, channels, high, wide).transpose(1, 2).reshape(count, high, channels * wide)
    return torch.bmm(rows, side_by_side).view(count, rows.shape[1], channels, wide).transpose(1, 2)


def blur_matrix(side: int, deviation: Tensor) -> Tensor:
    """Weights [B, side, side] of the pixels along an axis."""
    radius = min(BLUR_RADIUS, side - 1)
    offsets = torch.arange(-radius, radius + 1, device=deviation.device)
    taps = torch.exp(-0.5 * (offsets / deviation[:, None]) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    place = (torch.arange(side, device=deviation.device) + offsets[:, None]).abs()
    place = (side - 1) - (side - 1 - place).abs()
    return torch.einsum("bt,tsi->bsi", taps, F.one_hot(place, side).to(taps.dtype))


def _luminance(images: Tensor) -> Tensor:
    weights = _luminance_weights(images.dtype, images.device)
    return torch.einsum("bchw,c->bhw", images, weights).unsqueeze(1)


@cache
def _luminance_weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Made once a device: the copy of a new tensor to a GPU waits for all that was asked of it before."""
    return torch.tensor(LUMINANCE, dtype=dtype, device=device)


def _column(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)
