"""Random views of a whole batch at once, on the device where the images are."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval.training import colours

ALL = slice(None)


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

    def __call__(self, images: Tensor, generator: torch.Generator, rows: slice = ALL, *, views: int = 1) -> Tensor:
        """uint8 [B, 3, S, S] to float32 in [0, 1], of the same shape or of some `rows` of the batch alone.

        Several `views` of all these images follow each other, [views·b, 3, S, S], made at once: an accelerator
        waits for every operation to be asked for. All draws come from `generator`, a CPU one, so that they are the
        same whatever the device; and they are those of the whole batch, one view after the other.
        """
        drawn = [self._drawn(len(images), generator, rows) for _ in range(views)]
        affine, brightness, contrast = moved(images.device, *map(torch.cat, zip(*drawn, strict=True)))
        pixels = repeated(images[rows], views)
        grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
        made = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        grey = made.mean(dim=(1, 2, 3), keepdim=True)
        return ((made - grey) * contrast + grey).mul_(brightness).clamp_(0, 1)

    def _drawn(self, count: int, generator: torch.Generator, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Of one view of `count` images, for the `rows` alone: a map [b, 2, 3] and two factors [b, 1, 1, 1]."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(count).uniform_(low, high, generator=generator)[rows]

        side = uniform(self.crop, 1.0).sqrt()
        aspect = uniform(-math.log(4 / 3), math.log(4 / 3)).exp().sqrt()
        wide, high = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
        angle = uniform(-self.rotation, self.rotation).deg2rad()
        sideways, down = uniform(-1, 1) * (1 - wide), uniform(-1, 1) * (1 - high)
        if self.flip:
            wide = wide * (uniform(0, 1) < 0.5).float().mul(2).sub(1)
        sine, cosine = angle.sin(), angle.cos()
        affine = torch.stack([wide * cosine, -high * sine, sideways, wide * sine, high * cosine, down], dim=1)
        brightness, contrast = (uniform(1 - self.jitter, 1 + self.jitter).view(-1, 1, 1, 1) for _ in range(2))
        return affine.view(-1, 2, 3), brightness, contrast


@dataclass(frozen=True)
class SimCLRAugmentation:
    """Random resized crop, mirror, colour jitter, grey and blur (SimCLR: Chen et al. 2020, arXiv 2002.05709, with
    the strengths that solo-learn has for CIFAR), drawn for each image.

    Crops are those of torchvision: an area and an aspect ratio drawn up to ten times until they fit, then resized
    with Pillow's bicubic filter. Unlike there, nothing is rounded to 8 bits on the way.
    """

    crop: float = 0.08
    """The smallest share of the area that is kept; the largest is 1."""
    flip: bool = True
    jitter: float = 0.8
    """Brightness, contrast and saturation are multiplied by 1 ± jitter, in an order drawn for each image."""
    hue: float = 0.2
    jittered: float = 0.8
    """Share of the images whose colours are changed."""
    grey: float = 0.2
    blurred: float = 0.5
    deviations: tuple[float, float] = (0.1, 2.0)
    """Of the blur, in pixels."""

    def __call__(self, images: Tensor, generator: torch.Generator, rows: slice = ALL, *, views: int = 1) -> Tensor:
        """uint8 [B, 3, S, S] to float32 in [0, 1], as `Augmentation` does; `generator` is one of the CPU."""
        device, side = images.device, images.shape[-1]
        drawn = [self._drawn(len(images), side, generator, rows) for _ in range(views)]
        *box, mirrored, factors, order, greyed, deviations, blurred = map(torch.cat, zip(*drawn, strict=True))

        def where(chosen: Tensor) -> Tensor:
            return chosen.nonzero()[:, 0]

        factors, deviations = moved(device, factors, deviations)
        top, left, high, wide, across, greyed, blurred, *changed = moved(
            device, *box, mirrored.long(), where(greyed), where(blurred),
            *(where(order[:, turn] == change) for turn in range(4) for change in range(len(CHANGES))),
        )  # fmt: skip
        crops = (
            crop_matrix(side, top, high, torch.zeros_like(across, dtype=torch.bool)),
            crop_matrix(side, left, wide, across.bool()),
        )
        made = colours.resampled(repeated(images[rows], views), *crops).clamp_(0, 1).contiguous()
        for place, chosen in enumerate(changed):
            change = place % len(CHANGES)
            made[chosen] = CHANGES[change](made[chosen], factors[chosen, change])
        made[greyed] = colours.grey(made[greyed])
        made[blurred] = colours.blurred(made[blurred], deviations[blurred])
        return made

    def _drawn(self, count: int, side: int, generator: torch.Generator, rows: slice) -> tuple[Tensor, ...]:
        """Of one view of `count` images of `side` pixels, for the `rows` alone.

        Top, left, height and width of the box, whether it is mirrored, the factor of each change [b, 4] and their
        order [b, 4] (−1: none), whether it becomes grey, the deviation of the blur and whether there is one.
        """

        def uniform(low: float, high: float, *more: int) -> Tensor:
            return torch.empty(count, *more).uniform_(low, high, generator=generator)[rows]

        box = random_boxes(side, self.crop, uniform)
        mirrored = uniform(0, 1) < (0.5 if self.flip else 0.0)
        strengths = [*(uniform(1 - self.jitter, 1 + self.jitter) for _ in range(3)), uniform(-1, 1) * self.hue]
        order = uniform(0, 1, 4).argsort(dim=1)
        order[uniform(0, 1) >= self.jittered] = -1
        greyed = uniform(0, 1) < self.grey
        deviations = uniform(*self.deviations)
        blurred = uniform(0, 1) < self.blurred
        return *box, mirrored, torch.stack(strengths, dim=1), order, greyed, deviations, blurred


CHANGES = (colours.brighter, colours.more_contrast, colours.more_saturated, colours.turned_hue)


def repeated(images: Tensor, views: int) -> Tensor:
    """Images uint8 [b, 3, S, S] as float32 in [0, 1], all of them `views` times: [views·b, 3, S, S]."""
    pixels = images.float().div_(255)
    return pixels if views == 1 else pixels.repeat(views, 1, 1, 1)


def moved(device: torch.device, *drawn: Tensor) -> list[Tensor]:
    """Tensors of one type from the CPU, on `device`: one copy for all of them, for which no GPU has to wait."""
    if device.type == "cpu":
        return list(drawn)
    together = torch.cat([tensor.flatten() for tensor in drawn])
    if device.type == "cuda":
        together = together.pin_memory()
    there = together.to(device, non_blocking=device.type == "cuda")
    parts = torch.split(there, [tensor.numel() for tensor in drawn])
    return [part.view(tensor.shape) for part, tensor in zip(parts, drawn, strict=True)]


def random_boxes(side: int, crop: float, uniform: Callable[..., Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height and width int64 [B] of a box in each square image; `uniform(low, high, *more)` draws
    [B, *more].

    Of ten boxes with an area of `crop` to 1 and an aspect ratio of 3/4 to 4/3 the first that fits; else all of
    the image.
    """
    area = side * side * uniform(crop, 1.0, 10)
    ratio = uniform(math.log(3 / 4), math.log(4 / 3), 10).exp()
    wide, high = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (wide >= 1) & (wide <= side) & (high >= 1) & (high <= side)
    first = fits.int().argmax(dim=1, keepdim=True)
    any_fits = fits.any(1)
    wide = wide.gather(1, first)[:, 0].where(any_fits, torch.tensor(side))
    high = high.gather(1, first)[:, 0].where(any_fits, torch.tensor(side))
    top = (uniform(0, 1) * (side - high + 1)).long().minimum(side - high)  # a product may round up
    left = (uniform(0, 1) * (side - wide + 1)).long().minimum(side - wide)
    return top, left, high, wide


def crop_matrix(side: int, start: Tensor, length: Tensor, mirrored: Tensor) -> Tensor:
    """Weights [B, side, side] that stretch pixels `start` … `start + length − 1` along an axis to all of it.

    The bicubic filter is Pillow's (a = −½), and sees no pixel outside of the box. A box is never longer than the
    axis, so nothing has to be smoothed before it is sampled.
    """
    pixels = torch.arange(side, device=start.device)
    places = torch.where(mirrored[:, None], pixels.flip(0), pixels)
    centres = start[:, None] + (places + 0.5) * (length / side)[:, None]
    distance = (pixels + 0.5 - centres[..., None]).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    inside = (pixels >= start[:, None]) & (pixels < (start + length)[:, None])
    weights = weights * inside[:, None, :]
    return weights / weights.sum(2, keepdim=True)
