"""Snow, frost, fog and spatter on batches of images; `corruptions` says where their constants are from."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from monoeval.data.corruptions_blur import WHOLE, Images, Pixels, Rngs, gaussian, motion, zoom

FROST = (
    ((77.7, 149.1, 165.7), (26.9, 16.5, 15.3)),
    ((200.8, 205.4, 214.5), (21.4, 22.1, 22.6)),
    ((200.8, 205.4, 214.5), (21.4, 22.1, 22.6)),
    ((137.6, 152.8, 165.2), (28.5, 28.5, 29.9)),
    ((112.4, 123.4, 134.8), (44.4, 43.3, 41.7)),
)
"""Mean and standard deviation of red, green and blue over each of the five photographs that the published code
draws from (a sixth is never drawn; the second and third are one)."""
FROST_SIDE = 640
FROST_SLOPE = 1.5
"""Their power falls with this power of the frequency: 1.2 to 1.8, between 2 and 100 cycles in 256 pixels."""

WATER = (175, 238, 238)
MUD = (63, 42, 20)


def snow(images: Images, level: tuple[float, float, float, float, int, float, float], rngs: Rngs) -> Pixels:
    """Flakes from enlarged noise, blown along a line, over a whitened image; the same flakes upside down too."""
    import cv2

    mean, spread, factor, threshold, radius, sigma, kept = level
    height, width = images.shape[1:3]
    noise = np.stack([rng.standard_normal((height, width, 1), dtype=np.float32) for rng in rngs])
    flakes = zoom(np.float32(mean) + np.float32(spread) * noise, factor)
    flakes = np.where(flakes < threshold, 0, np.floor(255 * flakes.clip(0, 1)))
    pixels = images.astype(np.float32)
    out = np.empty(images.shape, dtype=np.float32)
    for row, rng in enumerate(rngs):
        blown = np.rint(motion(flakes[row, ..., 0], radius, sigma, rng.uniform(-135, -45)))
        white = np.maximum(pixels[row], cv2.cvtColor(pixels[row], cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 127.5)
        out[row] = kept * pixels[row] + (1 - kept) * white + (blown + blown[::-1, ::-1])[..., None]
    return out + WHOLE


@cache
def _frost(shrunk: bool) -> NDArray[np.float32]:
    """The five textures, float32 [5, S, S, 3]; they repeat without a seam."""
    import cv2
    from scipy.fft import irfft2

    frequency = np.hypot(np.fft.fftfreq(FROST_SIDE)[:, None], np.fft.rfftfreq(FROST_SIDE))
    frequency[0, 0] = np.inf
    made = []
    for number, (mean, spread) in enumerate(FROST):
        rng = np.random.Generator(np.random.PCG64(number))
        wave = rng.standard_normal((2, *frequency.shape)).astype(np.float32)
        field = irfft2((wave[0] + 1j * wave[1]) * frequency ** (-FROST_SLOPE / 2), s=(FROST_SIDE, FROST_SIDE))
        texture = np.array(mean) + np.array(spread) * (field / field.std())[..., None]
        texture = np.floor(texture.clip(0, 255)).astype(np.float32)
        made.append(cv2.resize(texture, (0, 0), fx=0.2, fy=0.2) if shrunk else texture)
    return np.stack(made)


def frost_synthetic(images: Images, level: tuple[float, float, bool], rngs: Rngs) -> Pixels:
    """Part of a frosty texture mixed in.

    The published corruption uses photographs that are not ours to ship. In their place stand Gaussian textures
    with the mean, the spread and the spectrum of each of them, but without their needles: an approximation, so
    its name and its scores are kept apart. Small images take the texture at a fifth of its size, as published.
    """
    kept, weight, shrunk = level
    textures = _frost(shrunk)
    side = textures.shape[1]
    rows, columns = np.arange(images.shape[1]), np.arange(images.shape[2])
    out = np.float32(kept) * images
    for row, rng in enumerate(rngs):
        number, top, left = rng.integers(0, (len(FROST), side, side))
        part = textures[number].take((top + rows) % side, axis=0).take((left + columns) % side, axis=1)
        out[row] += np.float32(weight) * part
    return out + WHOLE


def _plasma(side: int, decay: float, rngs: Rngs) -> NDArray[np.float32]:
    """Clouds [B, side, side] from 0 to 1 by diamonds and squares; `side` is a power of two, and edges meet.

    Each point is the mean of four around it and a uniform error, which shrinks by `decay` each time the grid is
    halved, from ±10,000 at first.
    """
    errors = np.stack([rng.random(side**2 - 1, dtype=np.float32) for rng in rngs])
    errors = 2 * errors - 1
    clouds = np.zeros((len(rngs), side, side), dtype=np.float32)
    used, step, size = 0, side, np.float32(100)

    def error(cells: int) -> NDArray[np.float32]:
        nonlocal used
        used += cells**2
        return size * 100 * errors[:, used - cells**2 : used].reshape(-1, cells, cells)

    while step >= 2:
        half, cells = step // 2, side // step
        corners = clouds[:, ::step, ::step]
        below = corners + np.roll(corners, -1, axis=1)
        centres = (below + np.roll(below, -1, axis=2)) / 4 + error(cells)
        clouds[:, half::step, half::step] = centres
        across = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
        down = centres + np.roll(centres, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
        clouds[:, ::step, half::step] = across / 4 + error(cells)
        clouds[:, half::step, ::step] = down / 4 + error(cells)
        step, size = half, np.float32(size / decay)
    clouds -= clouds.min(axis=(1, 2), keepdims=True)
    clouds /= clouds.max(axis=(1, 2), keepdims=True)
    return clouds


def fog(images: Images, level: tuple[float, float], rngs: Rngs) -> Pixels:
    """Clouds added, then darkened so that the brightest pixel could be no brighter than before."""
    strength, decay = np.float32(level[0]), level[1]
    height, width = images.shape[1:3]
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    clouds = _plasma(side, decay, rngs)[:, :height, :width, None]
    brightest = images.max(axis=(1, 2, 3)).astype(np.float32) / 255
    scale = (brightest / (brightest + strength))[:, None, None, None]
    return np.asarray((images + 255 * strength * clouds) * scale + WHOLE, dtype=np.float32)


def spatter(images: Images, level: tuple[float, float, float, float, float, bool], rngs: Rngs) -> Pixels:
    """Drops of water that catch the light, or opaque mud at the higher severities."""
    import cv2

    mean, spread, sigma, threshold, strength, muddy = level
    height, width = images.shape[1:3]
    water, mud = np.array(WATER, dtype=np.float32), np.array(MUD, dtype=np.float32)
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)  # from one side
    out = images.astype(np.float32)
    for row, rng in enumerate(rngs):
        liquid = gaussian(
            mean + np.float32(spread) * rng.standard_normal((height, width), dtype=np.float32), sigma
        )
        if muddy:
            covered = gaussian((liquid > threshold).astype(np.float32), strength)[..., None]
            covered[covered < 0.8] = 0
            out[row] += covered * (mud - out[row])
            continue
        liquid = np.floor(255 * np.where(liquid < threshold, 0, liquid).clip(0, 1))
        away = cv2.distanceTransform(255 - cv2.Canny(liquid.astype(np.uint8), 50, 150), cv2.DIST_L2, 5)
        relief = cv2.equalizeHist(cv2.blur(np.minimum(away, 20), (3, 3)).astype(np.uint8))
        relief = cv2.filter2D(relief, cv2.CV_8U, light)
        glint = liquid * cv2.blur(relief, (3, 3))
        glint *= strength / max(glint.max(), 1)
        out[row] += glint[..., None] * water
    return out + WHOLE
