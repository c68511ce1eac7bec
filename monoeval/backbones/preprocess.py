"""From an image of any size to the tensor a backbone takes, in two stages with corruptions between."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from monoeval.data.images import Image
from monoeval.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
RESAMPLING = {
    "nearest": Pillow.Resampling.NEAREST,
    "bilinear": Pillow.Resampling.BILINEAR,
    "bicubic": Pillow.Resampling.BICUBIC,
    "lanczos": Pillow.Resampling.LANCZOS,
}


class Preprocess(Spec):
    """The evaluation transform of timm and torchvision, with the same rounding as theirs."""

    image_size: int
    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    crop_pct: float = 0.875
    """The crop is this share of the resized side."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_mode: Literal["center", "squash", "border"] = "center"
    """`center` resizes the shorter side, `squash` both sides, `border` the longer one and pads with the mean."""

    def image(self, image: Image, *, cropped: bool = False) -> Image:
        """Resize and crop uint8 RGB [H, W, 3] to a new uint8 [S, S, 3]; resize only where `cropped`."""
        if cropped:
            return self.squeezed(image)
        height, width = image.shape[:2]
        target = math.floor(self.image_size / self.crop_pct)
        if self.crop_mode == "squash":
            new_width = new_height = target
        elif self.crop_mode == "border":
            ratio = max(height, width) / target
            new_width, new_height = round(width / ratio), round(height / ratio)
        elif width <= height:
            new_width, new_height = target, int(target * height / width)
        else:
            new_width, new_height = int(target * width / height), target
        return self._crop(self._resized(image, new_width, new_height))

    def squeezed(self, image: Image) -> Image:
        """Resize the whole of uint8 RGB [h, w, 3] to a new uint8 [S, S, 3], whatever its aspect ratio."""
        return self._resized(image, self.image_size, self.image_size).copy()

    def _resized(self, image: Image, width: int, height: int) -> Image:
        if image.shape[:2] == (height, width):
            return image
        picture = Pillow.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((width, height), RESAMPLING[self.interpolation]))

    def _crop(self, image: Image) -> Image:
        size = self.image_size
        missing = [max(0, size - side) for side in image.shape[:2]]
        if any(missing):
            fill = [round(255 * m) for m in self.mean] if self.crop_mode == "border" else [0, 0, 0]
            padded = np.empty((image.shape[0] + missing[0], image.shape[1] + missing[1], 3), np.uint8)
            padded[:] = fill
            top, left = (m // 2 for m in missing)
            padded[top : top + image.shape[0], left : left + image.shape[1]] = image
            image = padded
        top, left = (round((side - size) / 2.0) for side in image.shape[:2])
        return image[top : top + size, left : left + size].copy()

    def tensor(self, images: NDArray[np.uint8]) -> "Tensor":
        """Normalise uint8 [B, S, S, 3] to float32 [B, 3, S, S] with the backbone's mean and standard deviation."""
        import torch

        planes = torch.from_numpy(images).permute(0, 3, 1, 2)
        pixels = planes.to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return pixels.div_(255).sub_(mean).div_(std)


def from_timm(config: Mapping[str, Any]) -> Preprocess:
    """Read timm's data config (`input_size`, `mean`, `std`, `crop_pct`, `interpolation`, `crop_mode`)."""
    interpolation = config.get("interpolation", "bicubic")
    return Preprocess(
        image_size=config["input_size"][-1],
        mean=tuple(config.get("mean") or IMAGENET_MEAN),
        std=tuple(config.get("std") or IMAGENET_STD),
        crop_pct=config.get("crop_pct") or 0.875,
        interpolation=interpolation if interpolation in RESAMPLING else "bilinear",  # "random" when training
        crop_mode=config.get("crop_mode") or "center",
    )
