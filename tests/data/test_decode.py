"""Every kind of picture, made by hand."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monoeval.data.decode import to_rgb
from monoeval.errors import MonoevalError

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_rgb_passes_through_in_every_form(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    path = tmp_path / "a.png"
    image.save(path)
    for form in (pixels, image, encoded(image, "PNG"), path):
        out = to_rgb(form)
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out, pixels)


def test_grey_is_repeated() -> None:
    for form in (
        RAMP,
        RAMP[:, :, None],
        encoded(Image.fromarray(RAMP), "PNG"),
        encoded(Image.fromarray(RAMP), "BMP"),
    ):
        np.testing.assert_array_equal(to_rgb(form), np.stack([RAMP] * 3, axis=2))


def test_one_bit() -> None:
    bits = RAMP > 100
    expected = np.stack([bits * 255] * 3, axis=2)
    np.testing.assert_array_equal(to_rgb(bits), expected)
    np.testing.assert_array_equal(to_rgb(encoded(Image.fromarray(bits), "PNG")), expected)


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert to_rgb(encoded(image, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    for kind in ("PNG", "GIF"):
        assert to_rgb(encoded(image, kind, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_transparency_is_laid_on_white() -> None:
    pixels = np.array([[[0, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 51]]], dtype=np.uint8)  # 51 of 255: a fifth
    expected = [[[255] * 3, [255, 0, 0], [204] * 3]]
    assert to_rgb(pixels).tolist() == expected
    assert to_rgb(encoded(Image.fromarray(pixels), "PNG")).tolist() == expected
    grey = Image.fromarray(np.array([[[0, 0], [80, 255], [0, 51]]], dtype=np.uint8))
    assert to_rgb(encoded(grey, "PNG")).tolist() == [[[255] * 3, [80] * 3, [204] * 3]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    wide = np.array([[0, 257, 128 * 257, 65535, 386]], dtype=np.uint16)
    expected = [[[v] * 3 for v in (0, 1, 128, 255, 2)]]
    assert to_rgb(encoded(Image.fromarray(wide), kind)).tolist() == expected
    assert to_rgb(wide).tolist() == expected
    assert to_rgb(wide.astype(">u2")).tolist() == expected
    assert to_rgb(Image.fromarray(wide.astype(np.int32))).tolist() == expected


def test_cmyk_and_adobes_inverted_jpeg() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert to_rgb(encoded(red, "TIFF"))[0, 0].tolist() == [255, 0, 0]
    jpeg = encoded(red, "JPEG", quality=95)
    assert b"Adobe" in jpeg  # Pillow writes the marker and inverted values, as Photoshop does
    assert np.abs(to_rgb(jpeg)[8, 8].astype(int) - [255, 0, 0]).max() <= 4


def test_exif_orientation_is_applied() -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 8:] = 255  # white to the right
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise: right goes down
    out = to_rgb(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    assert out.shape == (16, 8, 3)
    assert out[:8].max() == 0
    assert out[8:].min() == 255


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_truncated_file_is_damaged(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "broken.img"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        MonoevalError, match=r"broken\.img is damaged \(.*\): delete it or replace it, then run again"
    ):
        to_rgb(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_image_names_the_row(content: bytes) -> None:
    with pytest.raises(MonoevalError, match="Row 7 is damaged") as caught:
        to_rgb(content, "Row 7")
    assert "BytesIO" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MonoevalError, match=r"gone\.png cannot be read"):
        to_rgb(tmp_path / "gone.png")


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(MonoevalError, match="An image h"):
        to_rgb(pixels)
