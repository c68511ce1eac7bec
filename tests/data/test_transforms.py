"""Noise and corruption against closed forms, Pillow and colorsys."""

import colorsys
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from monoeval.data.images import Transform
from monoeval.data.transforms import CORRUPTIONS, NOISES, add_noise, corrupt, corruption_table, view, views
from monoeval.errors import UsageError


def batch(n: int = 4, size: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (size, size))
    images = np.stack([np.roll(smooth, shift, axis=0) for shift in range(n)])
    return images, np.array([f"id{row}" for row in range(n)])


def image(name: str, severity: float, seed: int = 0) -> Transform:
    return Transform(name=name, stage="image", severity=severity, seed=seed)


def grey(value: int, size: int) -> np.ndarray:
    return np.full((1, size, size, 3), value, dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [8, 32, 64])
def test_a_draw_depends_on_the_image_id_alone(name: str, size: int) -> None:
    images, ids = batch(5, size)
    for severity in (1, 5):
        whole = corrupt(images, ids, image(name, severity))
        assert whole.dtype == np.uint8
        assert whole.shape == images.shape
        order = np.array([3, 0, 4, 1, 2])
        np.testing.assert_array_equal(corrupt(images[order], ids[order], image(name, severity)), whole[order])
        for row in range(5):
            alone = corrupt(images[row : row + 1], ids[row : row + 1], image(name, severity))
            np.testing.assert_array_equal(alone[0], whole[row])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_is_greater_at_severity_5_than_1(name: str) -> None:
    images, ids = batch(2, 64)
    error = [np.abs(corrupt(images, ids, image(name, s)).astype(float) - images).mean() for s in (1, 5)]
    assert 0 < error[0] < error[1] or name == "saturate"  # its first severities take colour out, the last add it


def test_ids_seeds_and_severities_have_streams_of_their_own() -> None:
    images = np.repeat(grey(128, 32), 2, axis=0)
    first, second = corrupt(images, np.array(["a", "b"]), image("gaussian_noise", 3))
    assert (first != second).mean() > 0.9
    other = corrupt(images[:1], np.array(["a"]), image("gaussian_noise", 3, seed=1))[0]
    assert (first != other).mean() > 0.9
    milder = corrupt(images[:1], np.array(["a"]), image("gaussian_noise", 1))[0]
    correlation = np.corrcoef(milder.ravel().astype(float), first.ravel().astype(float))[0, 1]
    assert abs(correlation) < 0.1


@pytest.mark.parametrize(
    ("name", "size", "severity", "value", "spread"),
    [
        ("gaussian_noise", 224, 1, 128, 0.08 * 255),
        ("gaussian_noise", 32, 5, 128, 0.10 * 255),
        ("speckle_noise", 224, 1, 128, 0.15 * 128),
        ("shot_noise", 224, 1, 128, 255 * np.sqrt(128 / 255 / 60)),
        ("shot_noise", 32, 3, 128, 255 * np.sqrt(128 / 255 / 100)),
    ],
)
def test_noise_moments(name: str, size: int, severity: int, value: int, spread: float) -> None:
    noisy = corrupt(grey(value, size), np.array(["x"]), image(name, severity)).astype(float)
    assert noisy.mean() == pytest.approx(value - 0.5, abs=4 * spread / size)  # cut off, so half a level darker
    assert noisy.std() == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize(("size", "severity", "share"), [(224, 3, 0.09), (224, 5, 0.27), (32, 5, 0.07)])
def test_impulse_noise_is_half_salt_half_pepper(size: int, severity: int, share: float) -> None:
    noisy = corrupt(grey(100, size), np.array(["x"]), image("impulse_noise", severity))
    values, counts = np.unique(noisy, return_counts=True)
    assert values.tolist() == [0, 100, 255]
    n = noisy.size
    for count in (counts[0], counts[2]):
        assert count / n == pytest.approx(share / 2, abs=4 * np.sqrt(share / 2 / n))


@pytest.mark.parametrize(("size", "quality"), [(32, 58), (224, 15)])
def test_jpeg_is_pillows_at_the_same_quality(size: int, quality: int) -> None:
    images, ids = batch(1, size)
    stream = BytesIO()
    Image.fromarray(images[0]).save(stream, "JPEG", quality=quality)
    expected = np.asarray(Image.open(stream).convert("RGB"))
    np.testing.assert_array_equal(corrupt(images, ids, image("jpeg_compression", 3))[0], expected)


def test_contrast_keeps_each_channels_mean_and_shrinks_its_spread() -> None:
    images, ids = batch(1, 224)
    out = corrupt(images, ids, image("contrast", 2)).astype(float)
    before = images.astype(float)
    np.testing.assert_allclose(out.mean(axis=(1, 2)), before.mean(axis=(1, 2)) - 0.5, atol=0.1)
    np.testing.assert_allclose(out.std(axis=(1, 2)), 0.3 * before.std(axis=(1, 2)), rtol=0.01)


@pytest.mark.parametrize(("size", "shift"), [(32, 0.15), (224, 0.3)])
def test_brightness_adds_to_v_of_hsv(size: int, shift: float) -> None:
    images, ids = batch(1, size)
    images[0, 0, 0] = 0
    images[0, 0, 1] = (255, 10, 30)
    out = corrupt(images, ids, image("brightness", 3))
    for y, x in [(0, 0), (0, 1), (3, 5), (20, 31), (31, 2)]:
        h, s, v = colorsys.rgb_to_hsv(*(images[0, y, x] / 255))
        expected = np.array(colorsys.hsv_to_rgb(h, s, min(v + shift, 1))) * 255
        assert np.all(np.abs(out[0, y, x] - np.floor(expected + 1e-6)) <= 1)


@pytest.mark.parametrize(
    ("size", "severity", "scale", "add"), [(32, 4, 2, 0.1), (32, 2, 0.1, 0), (224, 5, 20, 0.2), (224, 4, 5, 0.1)]
)
def test_saturate_changes_s_of_hsv(size: int, severity: int, scale: float, add: float) -> None:
    images, ids = batch(1, size)
    images[0, 0, :3] = [(90, 90, 90), (0, 0, 0), (200, 10, 30)]
    out = corrupt(images, ids, image("saturate", severity))
    for y, x in [(0, 0), (0, 1), (0, 2), (3, 5), (20, 31), (31, 2)]:
        h, s, v = colorsys.rgb_to_hsv(*(images[0, y, x] / 255))
        expected = np.array(colorsys.hsv_to_rgb(h, min(s * scale + add, 1), v)) * 255
        assert np.all(np.abs(out[0, y, x] - np.floor(expected + 1e-6)) <= 1), (y, x)


def test_defocus_spreads_a_point_over_a_disk() -> None:
    point = np.zeros((1, 65, 65, 3), dtype=np.uint8)
    point[0, 32, 32] = 255
    blurred = corrupt(point, np.array(["x"]), image("defocus_blur", 1))[0, :, :, 0]
    yy, xx = np.mgrid[-32:33, -32:33]
    inside = yy**2 + xx**2 <= 9
    assert inside.sum() == 29  # lattice points of a disk of radius 3
    assert set(blurred[inside]) == {255 // 29}
    assert blurred[~inside].max() == 0


def test_gaussian_blur_of_a_point_is_a_gaussian() -> None:
    point = np.zeros((1, 65, 65, 3), dtype=np.uint8)
    point[0, 32, 32] = 255
    blurred = corrupt(point, np.array(["x"]), image("gaussian_blur", 2))[0, 32, :, 0]
    expected = np.exp(-(np.arange(-32, 33.0) ** 2) / 8)
    expected *= 255 / expected.sum() ** 2
    assert np.all(np.abs(blurred - np.floor(expected)) <= 1)


def test_pixelate_makes_blocks() -> None:
    images, ids = batch(1, 224)
    out = corrupt(images, ids, image("pixelate", 5))[0]  # 224 · 0.25 = 56 blocks of 4
    blocks = out.reshape(56, 4, 56, 4, 3)
    assert np.all(blocks == blocks[:, :1, :, :1])
    means = images[0].reshape(56, 4, 56, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks[:, 0, :, 0], means, atol=1.01)  # Pillow rounds rows, then columns


def test_the_table_follows_the_size() -> None:
    assert [corruption_table(size) for size in (8, 63, 64, 224)] == ["cifar-c"] * 2 + ["imagenet-c"] * 2


@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_other_severities_are_refused(severity: float) -> None:
    with pytest.raises(UsageError, match="severities 1 to 5"):
        corrupt(*batch(1), image("contrast", severity))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'gaussian_noise'"):
        corrupt(*batch(1), image("gausian_noise", 1))
    with pytest.raises(UsageError, match="gaussian"):
        add_noise(np.zeros((1, 3, 2, 2), np.float32), np.array(["a"]), image("gausian", 1))
    with pytest.raises(UsageError, match="cannot be -1"):
        add_noise(np.zeros((1, 3, 2, 2), np.float32), np.array(["a"]), image("gaussian", -1))


@pytest.mark.parametrize(
    ("name", "mean", "spread", "low", "high"),
    [
        ("gaussian", 0, 0.6, -np.inf, np.inf),
        ("uniform", 0.3, 0.6 / np.sqrt(12), 0, 0.6),
        ("uniform-centred", 0, 0.6 / np.sqrt(12), -0.3, 0.3),
    ],
)
def test_input_noise_moments(name: str, mean: float, spread: float, low: float, high: float) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 100, 100)).astype(np.float32)
    before = x.copy()
    noise = add_noise(x, np.array(list("abcd")), Transform(name=name, stage="tensor", severity=0.6)) - x
    np.testing.assert_array_equal(x, before)
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(mean, abs=5 * spread / np.sqrt(noise.size))
    assert noise.std() == pytest.approx(spread, rel=0.01)
    assert noise.min() >= low - 1e-6
    assert noise.max() <= high + 1e-6
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("name", NOISES)
def test_input_noise_does_not_depend_on_the_batch(name: str) -> None:
    x = np.zeros((6, 3, 8, 8), dtype=np.float32)
    ids = np.array(list("abcdef"))
    transform = Transform(name=name, stage="tensor", severity=0.4)
    whole = add_noise(x, ids, transform)
    np.testing.assert_array_equal(add_noise(x[4:1:-1], ids[4:1:-1], transform), whole[4:1:-1])


def placed(height: int, width: int) -> np.ndarray:
    """An image whose pixels tell where they are."""
    return np.stack([*np.mgrid[:height, :width], np.zeros((height, width))], axis=2).astype(np.uint8)


def test_a_view_is_a_part_of_the_image_that_id_and_seed_decide() -> None:
    whole = placed(90, 120)
    first, second = views(2)
    mirrored = 0
    for row in range(200):
        part = view(whole, f"id{row}", first)
        rows, columns = part[:, 0, 0].astype(int), part[0, :, 1].astype(int)
        mirrored += columns[0] > columns[-1]
        columns = columns[::-1] if columns[0] > columns[-1] else columns
        assert (np.diff(rows) == 1).all()
        assert (np.diff(columns) == 1).all()
        np.testing.assert_array_equal(np.sort(part.reshape(-1, 3), axis=0),
                                      np.sort(whole[rows][:, columns].reshape(-1, 3), axis=0))  # fmt: skip
        np.testing.assert_array_equal(view(whole, f"id{row}", first), part)
        assert not np.array_equal(view(whole, f"id{row}", second), part)
    assert 70 < mirrored < 130  # 4 standard deviations


def test_views_are_drawn_as_torchvision_draws_them() -> None:
    import torch
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    whole = placed(60, 100)
    shapes = np.array([view(whole, f"id{row}", views(1)[0]).shape[:2] for row in range(3000)])
    picture = Image.fromarray(whole)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, (0.08, 1.0), (3 / 4, 4 / 3))[2:] for _ in range(3000)]
    )
    assert ks_2samp(shapes.prod(axis=1), theirs.prod(axis=1)).pvalue > 0.01
    assert ks_2samp(shapes[:, 1] / shapes[:, 0], theirs[:, 1] / theirs[:, 0]).pvalue > 0.01
    share = shapes.prod(axis=1) / 6000
    assert 0.075 < share.min() < 0.1  # whole pixels may fall below 8 %
    assert share.max() <= 1


@pytest.mark.parametrize(("height", "width"), [(3, 200), (200, 3), (1, 1)])
def test_a_view_of_a_strip_is_its_centre_or_a_part(height: int, width: int) -> None:
    for row in range(20):
        high, wide, _ = view(placed(height, width), f"id{row}", views(1)[0]).shape
        assert 1 <= high <= min(height, 4)
        assert 1 <= wide <= min(width, 4)
