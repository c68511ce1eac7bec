"""Render the embedded `digits-printed` set: python -m monoeval.data.make_digits_printed OUT.npz

The digits 0-9 of the faces that matplotlib ships, brought to 8 × 8 the way the handwritten digits were (the UCI
optdigits set: a bitmap whose longer side is scaled to 32 × 32, then counts of ink in 4 × 4 blocks), so that the
two sets differ in who made the marks and not in resolution.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from monoeval.files import atomic
from monoeval.keys import draw_seed

VARIANTS = 6

TRAIN_FACES = ("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10")
"""Computer Modern trains and the others test, so that no family is on both sides."""
TEST_FACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)


def render(face: str, digit: int, variant: int) -> NDArray[np.uint8]:
    """One digit as ink counts 0-16 [8, 8]: turned by up to 8°, thinned or thickened, and shifted a little."""
    import matplotlib

    rng = np.random.default_rng(draw_seed("digits-printed", face, digit, variant))
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"), 160)
    large = Image.new("L", (320, 320))
    ImageDraw.Draw(large).text((160, 160), str(digit), fill=255, font=font, anchor="mm")
    large = large.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    stroke = rng.integers(-1, 2)
    if stroke:
        # 5 of about 120 pixels of height: roughly one pixel of the 32 × 32 bitmap in all.
        large = large.filter(ImageFilter.MaxFilter(5) if stroke > 0 else ImageFilter.MinFilter(5))
    glyph = large.crop(large.point(lambda value: 255 * (value > 127)).getbbox())
    # The handwritten digits fill the height of their box and stand near its middle.
    height = int(rng.integers(30, 33))
    width = min(max(round(height * glyph.width / glyph.height), 1), 32)
    glyph = glyph.resize((width, height), Image.Resampling.BOX)
    left = int(np.clip((32 - width) // 2 + rng.integers(-2, 3), 0, 32 - width))
    top = int(rng.integers(0, 32 - height + 1))
    bitmap = np.zeros((32, 32), dtype=np.uint8)
    bitmap[top : top + height, left : left + width] = np.asarray(glyph) > 127
    return np.asarray(bitmap.reshape(8, 4, 8, 4).sum(axis=(1, 3)), dtype=np.uint8)


def make() -> dict[str, NDArray[np.uint8] | NDArray[np.str_]]:
    """images uint8 [N, 8, 8] of 0-16, labels uint8 [N], face uint8 [N] (a position in faces), faces [F]."""
    names = (*TRAIN_FACES, *TEST_FACES)
    rows = [(face, digit, v) for face in range(len(names)) for digit in range(10) for v in range(VARIANTS)]
    return {
        "images": np.stack([render(names[face], digit, variant) for face, digit, variant in rows]),
        "labels": np.array([digit for _, digit, _ in rows], dtype=np.uint8),
        "face": np.array([face for face, _, _ in rows], dtype=np.uint8),
        "faces": np.array(names),
    }


if __name__ == "__main__":
    arrays = make()
    with atomic(Path(sys.argv[1])) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
