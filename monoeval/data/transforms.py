"""Corruptions of test images, noise on test tensors, and random views of training images.

The corruptions and their constants are those of Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations" (2019), made on the fly: images of 64 pixels and more take
the ImageNet-C table, smaller ones the CIFAR-C table. Every draw is a function of (image id, name, severity,
seed) alone: not of the batch, the order, or how many workers there are.
"""

import math
from collections.abc import Callable
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Image, Transform
from monoeval.errors import UsageError, unknown
from monoeval.keys import draw_seed

Table = Literal["imagenet-c", "cifar-c"]
Pixels = NDArray[np.float32]  # [H, W, 3], 0 to 255
Level = Any  # a row of a severity table: a number or a pair

SMALL = 64

NOISES = ("gaussian", "uniform", "uniform-centred")

AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10


def corruption_table(size: int) -> Table:
    """The severity table for images whose shorter side has `size` pixels."""
    return "cifar-c" if size < SMALL else "imagenet-c"


def _gaussian_noise(image: Image, sigma: float, rng: np.random.Generator) -> Pixels:
    return image + 255 * sigma * rng.standard_normal(image.shape, dtype=np.float32)


def _shot_noise(image: Image, photons: float, rng: np.random.Generator) -> Pixels:
    """Poisson noise; `photons` is the count that a white pixel stands for."""
    counts: NDArray[np.int64] = rng.poisson(image * (photons / 255))
    return (counts * (255 / photons)).astype(np.float32)


def _impulse_noise(image: Image, share: float, rng: np.random.Generator) -> Pixels:
    """Salt and pepper on each channel by itself."""
    hit = rng.random(image.shape, dtype=np.float32) < share
    salt = rng.random(image.shape, dtype=np.float32) < 0.5
    return np.where(hit, np.where(salt, 255, 0), image).astype(np.float32)


def _speckle_noise(image: Image, sigma: float, rng: np.random.Generator) -> Pixels:
    return image * (1 + sigma * rng.standard_normal(image.shape, dtype=np.float32))


def _gaussian_blur(image: Image, sigma: float, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest", truncate=4)
    return np.asarray(blurred, dtype=np.float32)


def _defocus_blur(image: Image, level: tuple[float, float], rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """A disk whose edge is softened by a small Gaussian."""
    import cv2

    radius, softness = level
    half = max(8, int(radius))
    away = np.arange(-half, half + 1) ** 2
    kernel = (away[:, None] + away[None, :] <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(kernel / kernel.sum(), (side, side), softness).astype(np.float32)
    inside = kernel.any(axis=0)  # most of it is zero where the radius is small
    blurred = cv2.filter2D(image.astype(np.float32), -1, kernel[inside][:, inside])
    return np.asarray(blurred, dtype=np.float32)


def _brightness(image: Image, shift: float, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Add to the V of HSV: RGB is proportional to V at fixed hue and saturation."""
    value = image.max(axis=2, keepdims=True).astype(np.float32)
    raised = np.minimum(value + 255 * shift, 255)
    # Multiplied first, so that whole numbers stay whole: a hair less would be cut off to one less.
    return np.asarray(np.where(value > 0, image * raised / np.maximum(value, 1), raised), dtype=np.float32)


def _saturate(image: Image, level: tuple[float, float], rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Scale and shift the S of HSV: the distance of each channel from V is proportional to S.

    A grey pixel has hue 0, so a shift tints it red, as in the published corruption.
    """
    scale, shift = level
    pixels = image.astype(np.float32)
    value = pixels.max(axis=2, keepdims=True)
    span = value - pixels.min(axis=2, keepdims=True)
    saturation = span / np.maximum(value, 1)
    wanted = np.clip(saturation * scale + shift, 0, 1)
    away = np.where(span > 0, (value - pixels) / np.maximum(span, 1), np.array([0, 1, 1], dtype=np.float32))
    return np.asarray(value * (1 - wanted * away), dtype=np.float32)


def _contrast(image: Image, scale: float, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    """Move each channel towards its mean over the image."""
    mean = image.mean(axis=(0, 1), keepdims=True, dtype=np.float64)
    return np.asarray((image - mean) * scale + mean, dtype=np.float32)


def _pixelate(image: Image, scale: float, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    from PIL import Image as Pillow

    height, width, _ = image.shape
    small = (max(int(width * scale), 1), max(int(height * scale), 1))
    reduced = Pillow.fromarray(image).resize(small, Pillow.Resampling.BOX)
    return np.asarray(reduced.resize((width, height), Pillow.Resampling.BOX), dtype=np.float32)


def _jpeg_compression(image: Image, quality: int, rng: np.random.Generator) -> Pixels:  # noqa: ARG001
    from PIL import Image as Pillow

    stream = BytesIO()
    Pillow.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Pillow.open(stream), dtype=np.float32)


_Corrupt = Callable[[Image, Level, np.random.Generator], Pixels]

# name: (function, ImageNet-C severities 1-5, CIFAR-C severities 1-5)
_REGISTRY: dict[str, tuple[_Corrupt, tuple[Level, ...], tuple[Level, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3), (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (
        _defocus_blur,
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    ),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
    "speckle_noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6), (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6), (0.4, 0.6, 0.7, 0.8, 1)),
    "saturate": (
        _saturate,
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    ),
}

CORRUPTIONS: tuple[str, ...] = tuple(_REGISTRY)
EXTRAS = ("speckle_noise", "gaussian_blur", "saturate")
"""Held out by the authors to tune on; no part of a mean over the scored ones."""


def _rng(row_id: str, transform: Transform) -> np.random.Generator:
    # PCG64 is numpy's default; naming it keeps the draws if that default ever changes.
    seed = draw_seed("transform", row_id, transform.name, float(transform.severity), transform.seed)
    return np.random.Generator(np.random.PCG64(seed))


def corrupt(images: NDArray[np.uint8], ids: NDArray[np.str_], transform: Transform) -> NDArray[np.uint8]:
    """`images` uint8 [B, H, W, 3], named by `ids` [B], under the corruption and severity of `transform`.

    The table follows the shorter side. Values are cut off to whole numbers, not rounded, as in the published
    data. Raises UsageError for an unknown corruption or a severity other than 1 to 5.
    """
    if transform.name not in _REGISTRY:
        raise unknown("corruption", transform.name, CORRUPTIONS)
    if transform.severity not in (1, 2, 3, 4, 5):
        raise UsageError(f"Corruptions have severities 1 to 5, not {transform.severity:g}.")
    function, imagenet, cifar = _REGISTRY[transform.name]
    table = imagenet if corruption_table(min(images.shape[1:3])) == "imagenet-c" else cifar
    level = table[int(transform.severity) - 1]
    out = np.empty_like(images)
    for row, (image, name) in enumerate(zip(images, ids, strict=True)):
        out[row] = np.clip(function(image, level, _rng(str(name), transform)), 0, 255)
    return out


def add_noise(x: NDArray[np.float32], ids: NDArray[np.str_], transform: Transform) -> NDArray[np.float32]:
    """Normalised tensors `x` float32 [B, 3, H, W] plus noise; severity is σ or ε, in normalised units.

    `gaussian` adds σ·N(0, 1). `uniform` adds ε·U[0, 1): one-sided, as in the paper, so it also brightens.
    `uniform-centred` adds ε·(U[0, 1) − ½): the same noise without that shift.
    Raises UsageError for an unknown noise or a negative severity.
    """
    if transform.name not in NOISES:
        raise unknown("input noise", transform.name, NOISES)
    if transform.severity < 0:
        raise UsageError(f"The strength of input noise cannot be {transform.severity:g}: choose 0 or more.")
    scale = np.float32(transform.severity)
    shift = np.float32(0.5 if transform.name == "uniform-centred" else 0)
    out = np.empty_like(x, dtype=np.float32)
    for row, name in enumerate(ids):
        rng = _rng(str(name), transform)
        if transform.name == "gaussian":
            noise = rng.standard_normal(x.shape[1:], dtype=np.float32)
        else:
            noise = rng.random(x.shape[1:], dtype=np.float32) - shift
        out[row] = x[row] + scale * noise
    return out


def views(count: int) -> list[Transform]:
    """The first `count` random views, for `extract`; a smaller count is a part of a larger one."""
    return [Transform(name="view", stage="original", severity=0, seed=seed) for seed in range(count)]


def view(image: Image, row_id: str, transform: Transform) -> Image:
    """A random part [h, w, 3] of uint8 [H, W, 3], mirrored in half of the draws; resizing it is the caller's.

    The crop of Szegedy et al. 2015 (arXiv 1409.4842), which contrastive learning and its linear probes train on:
    uniform in its share of the area (8 to 100 %), log-uniform in its aspect ratio (3:4 to 4:3), anywhere in the
    image. Draws that do not fit are drawn again; after ten, it is the largest central crop of such a ratio.
    """
    rng = _rng(row_id, transform)
    height, width = image.shape[:2]
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
            break
    else:
        wide, high = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
        top, left = (height - high) // 2, (width - wide) // 2
    part = image[top : top + high, left : left + wide]
    return part[:, ::-1] if rng.random() < 0.5 else part
