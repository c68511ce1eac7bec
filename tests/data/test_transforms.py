"""Noise on tensors and random views against closed forms and torchvision."""

import numpy as np
import pytest
from PIL import Image

from monoeval.data.images import Transform
from monoeval.data.transforms import NOISES, add_noise, view, views
from monoeval.errors import UsageError


def test_unknown_noises_and_negative_strengths_are_refused() -> None:
    x, ids = np.zeros((1, 3, 2, 2), np.float32), np.array(["a"])
    with pytest.raises(UsageError, match="gaussian"):
        add_noise(x, ids, Transform(name="gausian", stage="tensor", severity=1))
    with pytest.raises(UsageError, match="cannot be -1"):
        add_noise(x, ids, Transform(name="gaussian", stage="tensor", severity=-1))


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
