"""Blurs and warps of batches of images, and the filters that they and the weather are made of.

Images of one size come together as [B, H, W, 3]; arithmetic on a batch is done element by element, or image by
image, so that no image's result depends on the others. Constants and operations are those of
`corruptions.corrupt`, which says where they are from.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # [B, H, W, 3], RGB
Pixels = NDArray[np.float32]  # [B, H, W, 3], 0 to 255
Rngs = Sequence[np.random.Generator]
"""A generator an image; empty for corruptions that draw nothing."""

WHOLE = np.float32(1e-3)
"""Added to blurred pixels before they are cut off, so that what is a whole number but for rounding stays one."""


def gaussian(layer: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """float32 [H, W] or [H, W, C] under a Gaussian of `sigma` pixels cut at 4 σ; edges go on beyond themselves."""
    import cv2

    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return layer
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    blurred = cv2.sepFilter2D(layer, cv2.CV_32F, taps, taps, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, dtype=np.float32)


def motion(layer: NDArray[np.float32], radius: int, sigma: float, degrees: float) -> NDArray[np.float32]:
    """float32 [H, W] or [H, W, C] smeared along a line, as ImageMagick does it.

    The weights of 2 · radius + 1 whole-pixel steps are one half of a Gaussian; beyond an edge it goes on.
    """
    import cv2

    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    down = np.ceil(steps * math.sin(math.radians(degrees)) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(math.radians(degrees)) - 0.5).astype(int)
    top, left = -down.min(), -right.min()
    bottom, end = max(down.max(), 0), max(right.max(), 0)
    wide = cv2.copyMakeBorder(layer, int(top), int(bottom), int(left), int(end), cv2.BORDER_REPLICATE)
    height, width = layer.shape[:2]
    out = np.zeros_like(layer)
    for weight, y, x in zip(weights, down + top, right + left, strict=True):
        cv2.scaleAdd(wide[y : y + height, x : x + width], float(weight), out, out)
    return out


@lru_cache(maxsize=128)
def _zoomed(side: int, factor: float) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """The two pixels that each of `side` lies between once the middle is enlarged, and how far along it is."""
    cut = math.ceil(side / factor)
    size = round(cut * factor)
    at = ((size - side) // 2 + np.arange(side)) * ((cut - 1) / max(size - 1, 1))
    low = np.minimum(at.astype(np.intp), max(cut - 2, 0))
    start = (side - cut) // 2
    return start + low, start + np.minimum(low + 1, cut - 1), (at - low).astype(np.float32)


def zoom(layers: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """The middle of float32 [B, H, W, C], enlarged to the same size; linear, corners on corners."""
    low, high, along = _zoomed(layers.shape[1], factor)
    rows = layers[:, low]
    rows += (layers[:, high] - rows) * along[:, None, None]
    low, high, along = _zoomed(layers.shape[2], factor)
    out = rows.take(low, axis=2)
    out += (rows.take(high, axis=2) - out) * along[:, None]
    return out


def gaussian_blur(images: Images, sigma: float, rngs: Rngs) -> Pixels:  # noqa: ARG001
    return np.stack([gaussian(image, sigma) for image in images.astype(np.float32)]) + WHOLE


def defocus_blur(images: Images, level: tuple[float, float], rngs: Rngs) -> Pixels:  # noqa: ARG001
    """A disk whose edge is softened by a small Gaussian.

    The published disks of radius 8 and 10 touch the edge of their kernel, where softening adds 1 % of light.
    """
    import cv2

    radius, softness = level
    half = max(8, int(radius))
    away = np.arange(-half, half + 1) ** 2
    kernel = (away[:, None] + away[None, :] <= radius**2).astype(np.float32)
    side = 3 if radius <= 8 else 5
    kernel = cv2.GaussianBlur(kernel / kernel.sum(), (side, side), softness).astype(np.float32)
    inside = kernel.any(axis=0)  # most of it is zero where the radius is small
    kernel = kernel[inside][:, inside]
    return np.stack([cv2.filter2D(image, -1, kernel) for image in images.astype(np.float32)]) + WHOLE


def glass_blur(images: Images, level: tuple[float, int, int], rngs: Rngs) -> Pixels:
    """Blur, let each pixel take the colour of a near one, round after round, and blur again.

    The published code visits pixels from the last to the first and means to swap each with a near one. Its arrays
    are views, so the swap only copies: the near one keeps its colour. The published images were made so, and so
    are these: one pixel's colour may come from a pixel that took its own before. Such chains are followed by
    jumping along all of them at once.
    """
    sigma, reach, rounds = level
    n, height, width, _ = images.shape
    soft = gaussian_blur(images, sigma, ()).astype(np.uint8).reshape(n * height * width, 3)
    rows, columns = np.arange(reach + 1, height - reach + 1), np.arange(reach + 1, width - reach + 1)
    drawn = [rng.integers(-reach, reach, (rounds, len(rows), len(columns), 2), dtype=np.int8) for rng in rngs]
    steps = np.stack(drawn, axis=1).astype(np.intp)  # [rounds, B, rows, columns, 2 (right, down)]
    pixel = np.arange(n * height * width, dtype=np.intp)
    visited = pixel.reshape(n, height, width)[:, rows[:, None], columns].reshape(-1)
    inside = np.zeros(len(pixel), dtype=bool)
    inside[visited] = True
    source = pixel
    for right, down in zip(steps[..., 0].reshape(rounds, -1), steps[..., 1].reshape(rounds, -1), strict=True):
        near = visited + down * width + right
        # What was visited earlier in this round has its new colour already: follow it, beyond the end of `pixel`.
        taken = pixel.copy()
        taken[visited] = np.where((near > visited) & inside[near], near + len(pixel), near)
        open_ = visited[taken[visited] >= len(pixel)]
        while len(open_):
            taken[open_] = taken[taken[open_] - len(pixel)]
            open_ = open_[taken[open_] >= len(pixel)]
        source = source[taken]
    return gaussian_blur(soft[source].reshape(images.shape), sigma, ())


def motion_blur(images: Images, level: tuple[int, float], rngs: Rngs) -> Pixels:
    """Along a line within 45° of the horizontal; rounded, as the published images were written before the cut."""
    radius, sigma = level
    smeared = [
        motion(image, radius, sigma, rng.uniform(-45, 45))
        for image, rng in zip(images.astype(np.float32), rngs, strict=True)
    ]
    return np.stack(smeared) + np.float32(0.5)


def zoom_blur(images: Images, level: tuple[float, float], rngs: Rngs) -> Pixels:  # noqa: ARG001
    """The mean of the image and of itself enlarged by factors from 1 up to, by rounding at times with, `stop`."""
    stop, step = level
    factors = np.arange(1, stop, step)
    pixels = images.astype(np.float32)
    total = pixels.copy()
    for factor in factors:
        total += zoom(pixels, float(factor))
    return total / np.float32(len(factors) + 1) + WHOLE


@lru_cache(maxsize=16)
def _smoothing(side: int, sigma: float) -> NDArray[np.float32]:
    """A Gaussian cut at 3 σ with mirrored edges, as a matrix [side, side]: σ can be longer than the image."""
    from scipy.ndimage import gaussian_filter1d

    smooth = gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect", truncate=3)
    return np.asarray(smooth, dtype=np.float32)


def _mirrored(index: NDArray[np.intp], side: int) -> NDArray[np.intp]:
    """Indices beyond an edge, folded back at it."""
    index = index % (2 * side)
    return np.minimum(index, 2 * side - 1 - index)


def sample(images: NDArray[np.float32], y: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [B, H, W, C] at the points y, x [B, H, W]; linear in between, mirrored beyond the edges."""
    n, height, width, channels = images.shape
    top, left = np.floor(y), np.floor(x)
    below, beside = (y - top)[..., None], (x - left)[..., None]
    rows = [_mirrored(top.astype(np.intp) + i, height) * width for i in (0, 1)]
    columns = [_mirrored(left.astype(np.intp) + i, width) for i in (0, 1)]
    flat = images.reshape(n * height * width, channels)
    first = (np.arange(n) * height * width)[:, None, None]
    upper, lower = (
        (1 - beside) * flat.take(first + row + columns[0], axis=0)
        + beside * flat.take(first + row + columns[1], axis=0)
        for row in rows
    )
    return np.asarray((1 - below) * upper + below * lower, dtype=np.float32)


def elastic_transform(images: Images, level: tuple[float, float, float], rngs: Rngs) -> Pixels:
    """Shift three points at random and the plane with them, then each pixel by smoothed noise.

    `level` is (strength, smoothness, shift), in pixels of an image whose shorter side is 1: displacements keep
    their size relative to the image. As smoothing over more pixels leaves less of the noise, strength grows with
    the square of the side.
    """
    import cv2

    n, height, width, _ = images.shape
    side = min(height, width)
    strength, smoothness, shift = level[0] * side**2, level[1] * side, level[2] * side
    middle = np.array([width // 2, height // 2], dtype=np.float32)
    reach = max(side // 3, 1)
    corners = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]], dtype=np.float32)
    moved = np.empty(images.shape, dtype=np.float32)
    shifts = np.zeros((2, n, height, width), dtype=np.float32)
    for row, (image, rng) in enumerate(zip(images.astype(np.float32), rngs, strict=True)):
        targets = corners + rng.uniform(-shift, shift, (3, 2)).astype(np.float32)
        plane = cv2.getAffineTransform(corners, targets)
        moved[row] = cv2.warpAffine(image, plane, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        if strength:
            noise = 2 * rng.random((2, height, width), dtype=np.float32) - 1
            shifts[:, row] = strength * (_smoothing(height, smoothness) @ noise @ _smoothing(width, smoothness).T)
    if not strength:
        return moved + WHOLE
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    return sample(moved, y + shifts[1], x + shifts[0]) + WHOLE
