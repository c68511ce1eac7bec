"""Corruptions against closed forms, Pillow, colorsys, scipy and loops that take the published steps one by one."""

import colorsys
from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from monoeval.data import corruptions
from monoeval.data.corruptions import CORRUPTIONS, EXTRAS, corrupt, corruption_table
from monoeval.data.corruptions_blur import elastic_transform, gaussian, glass_blur, motion, sample, zoom, zoom_blur
from monoeval.data.corruptions_weather import FROST, MUD, fog, frost_synthetic, snow, spatter
from monoeval.data.images import Transform
from monoeval.errors import UsageError


def batch(n: int = 4, size: int = 32, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (width or size, size))
    images = np.stack([np.roll(smooth, shift, axis=0) for shift in range(n)])
    return images, np.array([f"id{row}" for row in range(n)])


def image(name: str, severity: float, seed: int = 0) -> Transform:
    return Transform(name=name, stage="image", severity=severity, seed=seed)


def grey(value: int, size: int) -> np.ndarray:
    return np.full((1, size, size, 3), value, dtype=np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (40, 24), (64, 72)])
def test_a_draw_depends_on_the_image_id_alone(
    name: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, ids = batch(5, height, width)
    for severity, together in ((1, 1 << 16), (5, 2 * height * width)):
        monkeypatch.setattr(corruptions, "TOGETHER", together)
        whole = corrupt(images, ids, image(name, severity))
        assert whole.dtype == np.uint8
        assert whole.shape == images.shape
        order = np.array([3, 0, 4, 1, 2])
        np.testing.assert_array_equal(corrupt(images[order], ids[order], image(name, severity)), whole[order])
        for row in (0, 4):
            alone = corrupt(images[row : row + 1], ids[row : row + 1], image(name, severity))
            np.testing.assert_array_equal(alone[0], whole[row])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_is_greater_at_severity_5_than_1(name: str) -> None:
    images, ids = batch(4, 64)
    error = [np.abs(corrupt(images, ids, image(name, s)).astype(float) - images).mean() for s in (1, 5)]
    # The first severities of saturate take colour out, the last add it; those of elastic_transform bend less and
    # less of the whole; those of frost weigh image and texture otherwise.
    assert 0 < error[0] < error[1] or name in {"saturate", "elastic_transform", "frost"}


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


def test_there_are_nineteen_and_four_are_extra() -> None:
    assert len(CORRUPTIONS) == 19
    assert set(EXTRAS) == {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    scored = "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog"
    scored += " brightness contrast elastic_transform pixelate jpeg_compression"
    assert [name for name in CORRUPTIONS if name not in EXTRAS] == scored.split()


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if n.endswith("blur") or n == "elastic_transform"])
@pytest.mark.parametrize("size", [32, 64])
def test_blurs_and_warps_leave_one_colour_as_it_is(name: str, size: int) -> None:
    images = np.concatenate([grey(value, size) for value in (0, 1, 100, 254, 255)])
    bright = (name, size) == ("defocus_blur", 64)  # whose kernels of severities 4 and 5 add up to more than 1
    for severity in (1, 2, 3) if bright else (1, 2, 3, 4, 5):
        np.testing.assert_array_equal(corrupt(images, np.array(list("abcde")), image(name, severity)), images)


def noisy(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def streams(n: int = 1) -> list[np.random.Generator]:
    return [np.random.default_rng(row) for row in range(n)]


@pytest.mark.parametrize("sigma", [0.05, 0.4, 1, 6])
def test_gaussian_is_scipys(sigma: float) -> None:
    layer = noisy(40, 24, 3).astype(np.float32)
    wanted = ndimage.gaussian_filter(layer.astype(np.float64), (sigma, sigma, 0), mode="nearest", truncate=4)
    np.testing.assert_allclose(gaussian(layer, sigma), wanted, atol=1e-3)


@pytest.mark.parametrize("degrees", [-135.0, -45, -20, 0, 31, 45])
def test_motion_adds_up_steps_along_a_line(degrees: float) -> None:
    layer, radius, sigma = noisy(20, 14).astype(np.float32), 9, 4.0
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / 2 / sigma**2)
    wanted = np.zeros(layer.shape)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        y = np.arange(20) + int(np.ceil(step * np.sin(np.radians(degrees)) - 0.5))
        x = np.arange(14) + int(np.ceil(step * np.cos(np.radians(degrees)) - 0.5))
        wanted += weight * layer[np.ix_(y.clip(0, 19), x.clip(0, 13))]
    np.testing.assert_allclose(motion(layer, radius, sigma, degrees), wanted, atol=1e-3)


def enlarged(layer: np.ndarray, factor: float) -> np.ndarray:
    """The published zoom, with each side cut by itself."""
    cut = [int(np.ceil(side / factor)) for side in layer.shape[:2]]
    top, left = ((side - c) // 2 for side, c in zip(layer.shape, cut, strict=False))
    made = ndimage.zoom(layer[top : top + cut[0], left : left + cut[1]], (factor, factor, 1), order=1)
    top, left = ((m - side) // 2 for m, side in zip(made.shape[:2], layer.shape[:2], strict=True))
    return made[top : top + layer.shape[0], left : left + layer.shape[1]]


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.3, 1.75, 4.5])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 30), (7, 2)])
def test_zoom_is_scipys(factor: float, height: int, width: int) -> None:
    layers = noisy(2, height, width, 3).astype(np.float32)
    for made, layer in zip(zoom(layers, factor), layers, strict=True):
        np.testing.assert_allclose(made, enlarged(layer.astype(np.float64), factor), atol=1e-2)


def test_zoom_blur_is_the_mean_of_zooms() -> None:
    images = noisy(1, 64, 70, 3)
    factors = [1.0, 1.03, 1.06, 1.09, 1.12, 1.15, 1.18, 1.21, 1.24, 1.27, 1.30]
    wanted = sum((enlarged(images[0].astype(np.float64), f) for f in factors), images[0].astype(np.float64)) / 12
    np.testing.assert_allclose(zoom_blur(images, (1.31, 0.03), ())[0], wanted, atol=0.01)
    blurred = corrupt(images, np.array(["x"]), image("zoom_blur", 5))[0]
    assert np.abs(blurred - np.floor(wanted)).max() <= 1


@pytest.mark.parametrize(
    ("height", "width", "reach", "rounds"), [(12, 12, 1, 1), (20, 13, 2, 3), (30, 30, 4, 2), (3, 9, 2, 1)]
)
def test_glass_copies_near_pixels_in_the_published_order(height: int, width: int, reach: int, rounds: int) -> None:
    images = np.arange(2 * height * width * 3, dtype=np.uint8).reshape(2, height, width, 3)
    made = glass_blur(images, (0.05, reach, rounds), streams(2)).astype(np.uint8)  # 0.05 blurs nothing
    for x, rng, got in zip(images.copy(), streams(2), made, strict=True):
        drawn = rng.integers(
            -reach, reach, (rounds, *(max(s - 2 * reach, 0) for s in (height, width)), 2), np.int8
        )
        for i in range(rounds):
            for h in range(height - reach, reach, -1):
                for w in range(width - reach, reach, -1):
                    right, down = drawn[i, h - reach - 1, w - reach - 1]
                    x[h, w], x[h + down, w + right] = x[h + down, w + right], x[h, w]  # views: a copy, not a swap
        np.testing.assert_array_equal(got, x)


def test_sample_is_scipys_interpolation() -> None:
    rng = np.random.default_rng(2)
    images = noisy(2, 11, 17, 3).astype(np.float32)
    y, x = (rng.uniform(-40, 60, (2, 11, 17)).astype(np.float32) for _ in range(2))
    for row, made in enumerate(sample(images, y, x)):
        for channel in range(3):
            layer = images[row, ..., channel].astype(np.float64)
            wanted = ndimage.map_coordinates(layer, [y[row], x[row]], order=1, mode="reflect")
            np.testing.assert_allclose(made[..., channel], wanted, atol=0.01)


def test_elastic_transform_moves_nothing_without_strength_or_shift() -> None:
    images = noisy(2, 40, 24, 3)
    made = elastic_transform(images, (0, 0, 0), streams(2)).astype(int)
    assert np.abs(made - images).max() <= 1


@pytest.mark.parametrize(("strength", "smoothness"), [(0.02, 0.08), (0.1, 0.7)])
def test_elastic_transform_moves_pixels_by_smoothed_noise(strength: float, smoothness: float) -> None:
    y, x = np.mgrid[:24, :40]
    images = np.stack([x * 6, y * 6, x * 0], axis=2).astype(np.uint8)[None]
    made = elastic_transform(images, (strength, smoothness, 0), streams())[0]
    rng = streams()[0]
    rng.uniform(size=(3, 2))  # what the plane is shifted by
    noise = 2 * rng.random((2, 24, 40), dtype=np.float32) - 1
    right, down = (
        strength * 24**2 * ndimage.gaussian_filter(n, smoothness * 24, mode="reflect", truncate=3) for n in noise
    )
    assert max(np.abs(right).max(), np.abs(down).max()) > 0.2
    middle = (slice(5, -5), slice(5, -5))
    np.testing.assert_allclose((made[..., 0] / 6 - x)[middle], right[middle], atol=0.02)
    np.testing.assert_allclose((made[..., 1] / 6 - y)[middle], down[middle], atol=0.02)


def test_elastic_constants_are_the_published_ones_at_the_published_sizes() -> None:
    imagenet, cifar = (getattr(corruptions._REGISTRY["elastic_transform"], t) for t in ("imagenet", "cifar"))
    for (strength, smoothness, shift), size, wanted in (
        (imagenet[0], 224, (488, 170.8, 24.4)),
        (imagenet[4], 224, (29.28, 2.44, 4.88)),
        (cifar[0], 32, (0, 0, 2.56)),
        (cifar[3], 32, (3.2, 1.28, 1.6)),
    ):
        assert (strength * size**2, smoothness * size, shift * size) == pytest.approx(wanted)


def test_fog_is_a_diamond_square_cloud() -> None:
    images, strength, decay, side = noisy(1, 16, 11, 3), 0.75, 2.5, 16
    made = fog(images, (strength, decay), streams())[0]
    errors = iter((2 * streams()[0].random(side**2 - 1, dtype=np.float32) - 1).tolist())
    cloud, step, size = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half = step // 2
        for first_y, first_x, near in (
            (half, half, [(-half, -half), (-half, half), (half, -half), (half, half)]),
            (0, half, [(-half, 0), (half, 0), (0, -half), (0, half)]),
            (half, 0, [(-half, 0), (half, 0), (0, -half), (0, half)]),
        ):
            for y in range(first_y, side, step):
                for x in range(first_x, side, step):
                    around = sum(cloud[(y + b) % side, (x + a) % side] for b, a in near)
                    cloud[y, x] = around / 4 + size * 100 * next(errors)
        step, size = half, size / decay
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    brightest = images.max() / 255
    wanted = (images[0] / 255 + strength * cloud[:, :11, None]) * brightest / (brightest + strength) * 255
    np.testing.assert_allclose(made, wanted, atol=0.05)


def test_fog_is_no_brighter_than_the_image_and_leaves_black_black() -> None:
    images = np.concatenate([grey(0, 64), grey(90, 64)])
    foggy = corrupt(images, np.array(["a", "b"]), image("fog", 5))
    assert foggy[0].max() == 0
    assert 80 < foggy[1].max() <= 90
    assert foggy[1].std() > 10


def test_snow_whitens_and_its_flakes_are_the_same_upside_down() -> None:
    images = grey(60, 64)
    snowy = snow(images, (0.55, 0.3, 4, 0.9, 12, 8, 0.7), streams())[0]
    np.testing.assert_array_equal(snowy, snowy[::-1, ::-1])
    # with no flake: 0.7 · 60 + 0.3 · (1.5 · 60 + 127.5)
    assert snowy.min() == pytest.approx(107.25, abs=0.01)
    assert snowy.max() > 140
    dry = snow(images, (0.55, 0.3, 4, 9, 12, 8, 0.7), streams())  # no noise passes 9
    np.testing.assert_allclose(dry, 107.25, atol=0.01)


def test_frost_mixes_in_textures_like_the_photographs() -> None:
    black = grey(0, 224).repeat(40, axis=0)
    ids = np.array([str(row) for row in range(40)])
    frosty = corrupt(black, ids, image("frost", 1)) / 0.4
    wanted = np.mean([mean for mean, _ in FROST], axis=0)
    np.testing.assert_allclose(frosty.mean(axis=(0, 1, 2)), wanted, atol=25)  # 40 draws of five means
    assert len(np.unique(frosty.mean(axis=(1, 2, 3)).round(1))) > 20
    means = frosty.mean(axis=(1, 2))
    nearest = [np.abs(means - mean).sum(axis=1) for mean, _ in FROST]
    assert np.min(nearest, axis=0).max() < 60
    both = [frost_synthetic(grey(v, 64), (0.5, 0.7, False), streams())[0] for v in (0, 100)]
    np.testing.assert_allclose(both[1] - both[0], 50, atol=1e-3)


def test_water_only_brightens_and_mud_is_brown() -> None:
    images = noisy(1, 64, 64, 3)
    wet = spatter(images, (0.65, 0.3, 3, 0.68, 0.6, False), streams())[0]
    assert (wet >= images[0]).all()
    added = (wet - images[0])[(wet - images[0]).max(axis=2) > 30]
    assert len(added)
    np.testing.assert_allclose(added[:, 0] / added[:, 2], 175 / 238, atol=0.01)
    assert added.max() <= 0.6 * 238 + 0.01
    muddy = spatter(grey(255, 64), (0.65, 0.1, 0.5, 0.6, 0.4, True), streams())[0]
    covered = muddy[muddy[..., 0] < 100]
    assert 0.05 < len(covered) / 64**2 < 0.95
    assert np.abs(covered - MUD).min() < 1
    assert (muddy[muddy[..., 0] > 110] > 254.9).all()  # covered by at least 0.8, or not at all


def test_spatter_without_a_drop_changes_nothing() -> None:
    images = noisy(1, 32, 32, 3)
    dry = spatter(images, (0.1, 0.1, 1, 0.9, 0.6, False), streams())[0]
    np.testing.assert_allclose(dry, images[0], atol=0.01)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (160, 150), (299, 299)])
def test_pixelate_is_pillows_box_twice(height: int, width: int) -> None:
    images = noisy(1, height, width, 3)
    for severity, scale in ((1, 0.95), (3, 0.85)) if height == 32 else ((1, 0.6), (3, 0.4), (5, 0.25)):
        picture = Image.fromarray(images[0])
        small = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
        wanted = np.asarray(small.resize((width, height), Image.Resampling.BOX))
        np.testing.assert_array_equal(corrupt(images, np.array(["x"]), image("pixelate", severity))[0], wanted)
