"""Every severity of every corruption against the published ones, in the tables and in what is done to pixels.

The numbers are typed from `make_imagenet_c.py` and `make_cifar_c.py` of github.com/hendrycks/robustness, in the
units that these have: zooms up to a factor in steps, and elastic_transform in pixels of a 224 or 32 pixel image.
"""

import colorsys
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from monoeval.data.corruptions import _REGISTRY, CORRUPTIONS, corrupt
from monoeval.data.corruptions_weather import MUD, WATER
from monoeval.data.images import Transform
from monoeval.data.transforms import generator

IMAGENET: dict[str, list] = {
    "gaussian_noise": [0.08, 0.12, 0.18, 0.26, 0.38],
    "shot_noise": [60, 25, 12, 5, 3],
    "impulse_noise": [0.03, 0.06, 0.09, 0.17, 0.27],
    "defocus_blur": [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    "glass_blur": [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    "zoom_blur": [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    "snow": [
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    "frost": [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    "brightness": [0.1, 0.2, 0.3, 0.4, 0.5],
    "contrast": [0.4, 0.3, 0.2, 0.1, 0.05],
    "elastic_transform": [
        (488, 170.8, 24.4),
        (488, 19.52, 48.8),
        (12.2, 2.44, 4.88),
        (17.08, 2.44, 4.88),
        (29.28, 2.44, 4.88),
    ],
    "pixelate": [0.6, 0.5, 0.4, 0.3, 0.25],
    "jpeg_compression": [25, 18, 15, 10, 7],
    "speckle_noise": [0.15, 0.2, 0.35, 0.45, 0.6],
    "gaussian_blur": [1, 2, 3, 4, 6],
    "spatter": [
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ],
    "saturate": [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
}
CIFAR: dict[str, list] = {
    "gaussian_noise": [0.04, 0.06, 0.08, 0.09, 0.10],
    "shot_noise": [500, 250, 100, 75, 50],
    "impulse_noise": [0.01, 0.02, 0.03, 0.05, 0.07],
    "defocus_blur": [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    "glass_blur": [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
    "snow": [
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
    "frost": [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    "fog": [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "contrast": [0.75, 0.5, 0.4, 0.3, 0.15],
    "elastic_transform": [
        (0, 0, 2.56),
        (1.6, 6.4, 2.24),
        (2.56, 1.92, 1.92),
        (3.2, 1.28, 1.6),
        (3.2, 0.96, 0.96),
    ],
    "pixelate": [0.95, 0.9, 0.85, 0.75, 0.65],
    "jpeg_compression": [80, 65, 58, 50, 40],
    "speckle_noise": [0.06, 0.1, 0.12, 0.16, 0.2],
    "gaussian_blur": [0.4, 0.6, 0.7, 0.8, 1],
    "spatter": [
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ],
    "saturate": [(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
}
LEVELS = {224: IMAGENET, 32: CIFAR}

every = pytest.mark.parametrize(
    ("size", "severity"), [(size, severity) for size in LEVELS for severity in (1, 2, 3, 4, 5)]
)


def one(name: str, size: int, severity: int) -> tuple:
    level = LEVELS[size][name][severity - 1]
    return level if isinstance(level, tuple) else (level,)


def made(name: str, severity: int, images: np.ndarray) -> np.ndarray:
    ids = np.array([f"id{row}" for row in range(len(images))])
    return corrupt(images, ids, Transform(name=name, stage="image", severity=severity))


def grey(value: int, size: int) -> np.ndarray:
    """As many pixels whatever the size, for moments that are equally exact."""
    return np.full(((192 // size) ** 2 or 1, size, size, 3), value, dtype=np.uint8)


def picture(size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8), (size, size))[None]


def test_the_tables_here_have_every_corruption_at_five_severities() -> None:
    for table in LEVELS.values():
        assert tuple(table) == CORRUPTIONS
        assert {len(levels) for levels in table.values()} == {5}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_the_published_one(name: str) -> None:
    corruption = _REGISTRY[name]
    for size, table in ((224, corruption.imagenet), (32, corruption.cifar)):
        assert len(table) == 5
        for severity, found in enumerate(table, 1):
            found = found if isinstance(found, tuple) else (found,)
            if name == "elastic_transform":  # kept as shares, so that other sizes are bent alike
                found = (found[0] * size**2, found[1] * size, found[2] * size)
            if name == "frost":
                *found, shrunk = found
                assert shrunk == (size == 32)  # only CIFAR-C takes the textures at a fifth of their size
            assert tuple(found) == pytest.approx(one(name, size, severity), rel=1e-12), (size, severity)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_what_images_of_that_size_get(name: str) -> None:
    """The operation alone, with the typed numbers, makes the same pixels."""
    for size in LEVELS:
        images = picture(size)
        for severity in (1, 2, 3, 4, 5):
            level: object = one(name, size, severity)
            if name == "elastic_transform":
                strength, smoothness, shift = one(name, size, severity)
                level = (strength / size**2, smoothness / size, shift / size)
            elif name == "frost":
                level = (*one(name, size, severity), size == 32)
            elif len(one(name, size, severity)) == 1:
                (level,) = one(name, size, severity)
            rngs = [generator("id0", Transform(name=name, stage="image", severity=severity))]
            wanted = _REGISTRY[name].apply(images, level, rngs).clip(0, 255).astype(int)
            # shares are rounded when they are divided and multiplied again
            most = np.abs(made(name, severity, images) - wanted).max()
            assert most <= (name == "elastic_transform"), (size, severity)


SURE = (np.arange(20_000) + 0.5) / 20_000
"""Chances at which a distribution's values are evenly many: their moments are those of the distribution."""


@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise", "shot_noise"])
@every
def test_the_moments_of_noise(name: str, size: int, severity: int) -> None:
    (level,) = one(name, size, severity)
    if name == "shot_noise":
        wanted = stats.poisson.ppf(SURE, level * 128 / 255) * 255 / level
    else:
        wanted = 128 + level * stats.norm.ppf(SURE) * (255 if name == "gaussian_noise" else 128)
    wanted = np.floor(wanted.clip(0, 255) + 1e-3)
    noisy = made(name, severity, grey(128, size)).astype(float)
    n = noisy.size
    assert noisy.mean() == pytest.approx(wanted.mean(), abs=5 * wanted.std() / np.sqrt(n))
    assert noisy.std() == pytest.approx(wanted.std(), rel=0.015)  # neighbouring levels differ by a tenth or more


@every
def test_the_share_of_impulses(size: int, severity: int) -> None:
    (share,) = one("impulse_noise", size, severity)
    noisy = made("impulse_noise", severity, grey(100, size))
    for value in (0, 255):
        error = np.sqrt(share / 2 * (1 - share / 2) / noisy.size)
        assert (noisy == value).mean() == pytest.approx(share / 2, abs=4 * error)


@every
def test_the_scale_of_contrast(size: int, severity: int) -> None:
    (scale,) = one("contrast", size, severity)
    halves = np.full((1, size, size, 3), 40, dtype=np.uint8)
    halves[:, size // 2 :] = 200  # a mean of 120, and 80 to either side
    low, high = np.unique(made("contrast", severity, halves))
    assert abs(low - (120 - 80 * scale)) <= 1
    assert abs(high - (120 + 80 * scale)) <= 1


@every
def test_the_shift_of_brightness_and_the_scale_of_saturation(size: int, severity: int) -> None:
    images = np.zeros((1, size, size, 3), dtype=np.uint8)
    images[0, :4, 0] = [(100, 60, 80), (20, 110, 90), (128, 128, 128), (0, 0, 0)]
    (shift,) = one("brightness", size, severity)
    scale, more = one("saturate", size, severity)
    for name, change in (
        ("brightness", lambda h, s, v: (h, s, min(v + shift, 1))),
        ("saturate", lambda h, s, v: (h, min(s * scale + more, 1), v)),
    ):
        out = made(name, severity, images)
        for row in range(4):
            wanted = np.array(colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*(images[0, row, 0] / 255))))) * 255
            assert np.abs(out[0, row, 0] - np.floor(wanted + 1e-6)).max() <= 1, (name, row)


@every
def test_the_quality_of_jpeg_and_the_size_of_blocks(size: int, severity: int) -> None:
    images = picture(size)
    stream = BytesIO()
    (quality,) = one("jpeg_compression", size, severity)
    Image.fromarray(images[0]).save(stream, "JPEG", quality=quality)
    np.testing.assert_array_equal(made("jpeg_compression", severity, images)[0], np.asarray(Image.open(stream)))
    side = int(size * one("pixelate", size, severity)[0])
    small = Image.fromarray(images[0]).resize((side, side), Image.Resampling.BOX)
    wanted = np.asarray(small.resize((size, size), Image.Resampling.BOX))
    np.testing.assert_array_equal(made("pixelate", severity, images)[0], wanted)


@every
def test_the_width_of_blurs(size: int, severity: int) -> None:
    point = np.zeros((1, 65, 65, 3), dtype=np.uint8) if size == 224 else np.zeros((1, 33, 33, 3), dtype=np.uint8)
    middle = point.shape[1] // 2
    point[0, middle, middle] = 255
    layer = point[0, :, :, 0].astype(float)
    (sigma,) = one("gaussian_blur", size, severity)
    wanted = ndimage.gaussian_filter(layer, sigma, mode="nearest", truncate=4)
    assert np.abs(made("gaussian_blur", severity, point)[0, :, :, 0] - np.floor(wanted + 1e-3)).max() <= 1
    radius, softness = one("defocus_blur", size, severity)
    away = np.arange(-12, 13) ** 2
    disk = (away[:, None] + away <= radius**2).astype(np.float32)
    taps = np.exp(-0.5 * (np.arange(-2, 3) / softness) ** 2)[1 - (radius > 8) : 4 + (radius > 8)]
    disk = ndimage.correlate1d(ndimage.correlate1d(disk / disk.sum(), taps / taps.sum(), 0), taps / taps.sum(), 1)
    found = made("defocus_blur", severity, point)[0, middle - 12 : middle + 13, middle - 12 : middle + 13, 0]
    inside = np.abs(np.arange(-12, 13)) < max(8, radius)  # the published kernel ends there
    inside = inside[:, None] & inside
    assert np.abs(found - np.floor(255 * disk + 1e-3))[inside].max() <= 1


@every
def test_the_light_of_snow_and_frost(size: int, severity: int) -> None:
    """What is done to all pixels alike, whatever is drawn."""
    *_, kept = one("snow", size, severity)
    snowy = made("snow", severity, grey(60, size)[:1])
    # grey of 60 is whitened to 1.5 · 60 + 127.5, and where no flake falls that is all
    assert snowy.min() == int(kept * 60 + (1 - kept) * 217.5 + 1e-3)
    weight = one("frost", size, severity)[0]
    black, brighter = (made("frost", severity, grey(value, size)[:1]).astype(float) for value in (0, 40))
    assert np.abs(brighter - black - weight * 40)[brighter < 255].max() <= 1


def test_the_colours_of_spatter() -> None:
    assert WATER == (175, 238, 238)
    assert MUD == (63, 42, 20)
