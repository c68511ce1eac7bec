"""Preprocessing against timm's own evaluation transform, on PIL images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from monoeval.backbones.preprocess import Preprocess, from_timm


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(5, 90),
    width=st.integers(5, 90),
    size=st.integers(8, 64),
    crop_pct=st.sampled_from([0.875, 0.9, 0.95, 1.0]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
)
def test_equals_timm(height, width, size, crop_pct, interpolation, crop_mode):
    image = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    config = {
        "input_size": (3, size, size),
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.25, 0.3),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "crop_mode": crop_mode,
    }
    expected = create_transform(**config, is_training=False)(Image.fromarray(image))
    ours = from_timm(config)
    pixels = ours.image(image)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    torch.testing.assert_close(ours.tensor(pixels[None])[0], expected, rtol=1e-5, atol=1e-6)


def test_tensor_by_hand():
    preprocess = Preprocess(image_size=1, mean=(0.5, 0.0, 0.25), std=(0.5, 1.0, 0.25))
    pixel = np.array([[[[255, 51, 0]]]], np.uint8)
    assert preprocess.tensor(pixel).flatten().tolist() == pytest.approx([1.0, 0.2, -1.0])


def test_image_leaves_its_input_alone():
    image = np.full((16, 16, 3), 7, np.uint8)
    out = Preprocess(image_size=16, crop_pct=1.0).image(image)
    out[:] = 0
    assert (image == 7).all()


@pytest.mark.parametrize(("height", "width"), [(30, 50), (7, 3), (16, 16)])
def test_squeezed_takes_the_whole_image(height, width):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = Preprocess(image_size=16).squeezed(image[:, ::-1])
    mirrored = Image.fromarray(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    np.testing.assert_array_equal(ours, np.asarray(mirrored.resize((16, 16), Image.Resampling.BICUBIC)))
