"""The nineteen corruptions of ImageNet-C and CIFAR-C, made on the fly: their table, and the noises and the rest.

Operations and constants are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations" (2019), as the code that made their data has them, but for frost, whose photographs
are replaced. Lengths in pixels are as published whatever the size of the image; what was made for one size (the
grid of fog, the shifts of elastic_transform, the crops of zooms) goes by the image's own. Every draw is a
function of (image id, name, severity, seed) alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monoeval.data.corruptions_blur import (
    Images,
    Pixels,
    Rngs,
    defocus_blur,
    elastic_transform,
    gaussian_blur,
    glass_blur,
    motion_blur,
    zoom_blur,
)
from monoeval.data.corruptions_weather import fog, frost_synthetic, snow, spatter
from monoeval.data.images import Transform
from monoeval.data.transforms import generator
from monoeval.errors import UsageError, unknown

Table = Literal["imagenet-c", "cifar-c"]
Level = Any  # a row of a severity table: a number or a tuple

VERSION = 2
"""Raised whenever the same image, name, severity and seed would give other pixels: keys of features and of scores
have it."""
SMALL = 64
TOGETHER = 1 << 16
"""Pixels that are worked on at once: small images share the cost of a step, large ones stay in the cache."""


def corruption_table(size: int) -> Table:
    """The severity table for images whose shorter side has `size` pixels."""
    return "cifar-c" if size < SMALL else "imagenet-c"


def _gaussian_noise(images: Images, sigma: float, rngs: Rngs) -> Pixels:
    noise = np.stack([rng.standard_normal(images.shape[1:], dtype=np.float32) for rng in rngs])
    noise *= np.float32(255 * sigma)
    noise += images
    return noise


def _shot_noise(images: Images, photons: float, rngs: Rngs) -> Pixels:
    """Poisson noise; `photons` is the count that a white pixel stands for."""
    expected = images * (photons / 255)
    counts = [rng.poisson(image) for image, rng in zip(expected, rngs, strict=True)]
    return (np.stack(counts) * (255 / photons)).astype(np.float32)


def _impulse_noise(images: Images, share: float, rngs: Rngs) -> Images:
    """Salt and pepper on each channel by itself."""
    drawn = np.stack([rng.random(images.shape[1:], dtype=np.float32) for rng in rngs])
    noisy = np.where(drawn < share, np.uint8(0), images)
    noisy[drawn < share / 2] = 255
    return noisy


def _speckle_noise(images: Images, sigma: float, rngs: Rngs) -> Pixels:
    noise = np.stack([rng.standard_normal(images.shape[1:], dtype=np.float32) for rng in rngs])
    noise *= np.float32(sigma)
    noise += 1
    noise *= images
    return noise


def _largest(images: Images) -> Images:
    """The V of HSV, [B, H, W, 1]."""
    return np.maximum(np.maximum(images[..., :1], images[..., 1:2]), images[..., 2:])


def _brightness(images: Images, shift: float, rngs: Rngs) -> Pixels:  # noqa: ARG001
    """Add to the V of HSV: RGB is proportional to V at fixed hue and saturation."""
    value = _largest(images).astype(np.float32)
    raised = np.minimum(value + np.float32(255 * shift), 255)
    # Multiplied first, so that whole numbers stay whole: a hair less would be cut off to one less.
    return np.asarray(np.where(value > 0, images * raised / np.maximum(value, 1), raised), dtype=np.float32)


def _saturate(images: Images, level: tuple[float, float], rngs: Rngs) -> Pixels:  # noqa: ARG001
    """Scale and shift the S of HSV: the distance of each channel from V is proportional to S.

    A grey pixel has hue 0, so a shift tints it red, as in the published corruption.
    """
    scale, shift = level
    pixels = images.astype(np.float32)
    value = _largest(images).astype(np.float32)
    span = value - np.minimum(np.minimum(pixels[..., :1], pixels[..., 1:2]), pixels[..., 2:])
    saturation = span / np.maximum(value, 1)
    wanted = np.clip(saturation * np.float32(scale) + np.float32(shift), 0, 1)
    away = np.where(span > 0, (value - pixels) / np.maximum(span, 1), np.array([0, 1, 1], dtype=np.float32))
    return np.asarray(value * (1 - wanted * away), dtype=np.float32)


def _contrast(images: Images, scale: float, rngs: Rngs) -> Images:  # noqa: ARG001
    """Move each channel towards its mean over the image: a table of what becomes of each of the 256 values."""
    import cv2

    values, made = np.arange(256)[:, None], np.empty_like(images)
    for row, image in enumerate(images):
        means = np.array(cv2.mean(image)[:3])
        table = ((values - means) * scale + means).clip(0, 255).astype(np.uint8)
        made[row] = cv2.LUT(image, table[None])
    return made


@lru_cache(maxsize=64)
def _enlarged(small: int, side: int) -> NDArray[np.intp]:
    """Which of `small` pixels each of `side` is when Pillow's box filter enlarges: it takes one pixel whole."""
    from PIL import Image as Pillow

    ramp = Pillow.fromarray(np.arange(small, dtype=np.float32)[None])
    places = np.asarray(ramp.resize((side, 1), Pillow.Resampling.BOX), dtype=np.float32)
    return places.reshape(side).astype(np.intp)


def _pixelate(images: Images, scale: float, rngs: Rngs) -> Images:  # noqa: ARG001
    from PIL import Image as Pillow

    _, height, width, _ = images.shape
    small = (max(int(width * scale), 1), max(int(height * scale), 1))
    columns, rows = _enlarged(small[0], width), _enlarged(small[1], height)
    made = np.empty_like(images)
    for row, image in enumerate(images):
        reduced = np.asarray(Pillow.fromarray(image).resize(small, Pillow.Resampling.BOX))
        reduced.take(columns, axis=1).take(rows, axis=0, out=made[row], mode="clip")  # "raise" makes a copy
    return made


def _jpeg_compression(images: Images, quality: int, rngs: Rngs) -> Images:  # noqa: ARG001
    from PIL import Image as Pillow

    made = np.empty_like(images)
    for row, image in enumerate(images):
        stream = BytesIO()
        Pillow.fromarray(image).save(stream, "JPEG", quality=quality)
        made[row] = np.asarray(Pillow.open(stream, formats=("JPEG",)))
    return made


@dataclass(frozen=True)
class _Corruption:
    """What `apply` makes may pass 0 and 255; its fraction is cut off, as in the published data."""

    apply: Callable[[Images, Level, Rngs], NDArray[np.float32] | NDArray[np.uint8]]
    imagenet: tuple[Level, ...]
    cifar: tuple[Level, ...]
    draws: bool = True


def _elastic(size: int, written: int, *rows: tuple[float, float, float]) -> tuple[Level, ...]:
    """Severities published in shares of `written` pixels for images of `size`; 244 stands there for 224."""
    return tuple((written * a / size**2, written * b / size, written * c / size) for a, b, c in rows)


_REGISTRY: dict[str, _Corruption] = {
    "gaussian_noise": _Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": _Corruption(_shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": _Corruption(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": _Corruption(
        defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        draws=False,
    ),
    "glass_blur": _Corruption(
        glass_blur,
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    "motion_blur": _Corruption(
        motion_blur,
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    ),
    "zoom_blur": _Corruption(
        zoom_blur,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        draws=False,
    ),
    "snow": _Corruption(
        snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": _Corruption(
        frost_synthetic,
        ((1, 0.4, False), (0.8, 0.6, False), (0.7, 0.7, False), (0.65, 0.7, False), (0.6, 0.75, False)),
        ((1, 0.2, True), (1, 0.3, True), (0.9, 0.4, True), (0.85, 0.4, True), (0.75, 0.45, True)),
    ),
    "fog": _Corruption(
        fog,
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    ),
    "brightness": _Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3), draws=False),
    "contrast": _Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15), draws=False),
    "elastic_transform": _Corruption(
        elastic_transform,
        _elastic(
            224, 244, (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)
        ),
        _elastic(
            32, 32, (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)
        ),
    ),
    "pixelate": _Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65), draws=False),
    "jpeg_compression": _Corruption(_jpeg_compression, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40), draws=False),
    "speckle_noise": _Corruption(_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6), (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": _Corruption(gaussian_blur, (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1), draws=False),
    "spatter": _Corruption(
        spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    ),
    "saturate": _Corruption(
        _saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        draws=False,
    ),
}

CORRUPTIONS: tuple[str, ...] = tuple(_REGISTRY)
EXTRAS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Held out by the authors to tune on; no part of a mean over the scored ones."""
SUBSTITUTES = {"frost": "frost-synthetic"}
"""What a corruption is called in protocols where it is not made as published."""
DRAWN = frozenset(SUBSTITUTES.get(name, name) for name, corruption in _REGISTRY.items() if corruption.draws)
"""Those that chance has a part in, as protocols call them."""


def corrupt(images: NDArray[np.uint8], ids: NDArray[np.str_], transform: Transform) -> NDArray[np.uint8]:
    """`images` uint8 [B, H, W, 3], named by `ids` [B], under the corruption and severity of `transform`.

    The table follows the shorter side. Values are cut off to whole numbers, not rounded, as in the published
    data. Raises UsageError for an unknown corruption or a severity other than 1 to 5.
    """
    if transform.name not in _REGISTRY:
        raise unknown("corruption", transform.name, CORRUPTIONS)
    if transform.severity not in (1, 2, 3, 4, 5):
        raise UsageError(f"Corruptions have severities 1 to 5, not {transform.severity:g}.")
    corruption = _REGISTRY[transform.name]
    table = corruption.imagenet if corruption_table(min(images.shape[1:3])) == "imagenet-c" else corruption.cifar
    level = table[int(transform.severity) - 1]
    out = np.empty_like(images)
    together = max(1, TOGETHER // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), together):
        some = slice(start, start + together)
        rngs = [generator(str(name), transform) for name in ids[some]] if corruption.draws else []
        made = corruption.apply(images[some], level, rngs)
        out[some] = made if made.dtype == np.uint8 else made.clip(0, 255, out=made)
    return out
