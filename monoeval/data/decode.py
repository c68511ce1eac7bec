"""Any picture a person may have, as uint8 RGB."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from monoeval import progress
from monoeval.data.images import Image, ImageSet
from monoeval.errors import MonoevalError, UsageError

# What Pillow raises on broken files, by format; UnidentifiedImageError is an OSError.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error,
    Pillow.DecompressionBombError,
)  # fmt: skip
LISTED = 20
"""Damaged images that a message names."""


class DamagedImageError(UsageError):
    """An image that cannot be decoded: whatever reads it stops, as a set without it is another set."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is damaged ({reason}): delete it or replace it, then run again.")
        self.name, self.reason = name, reason


@contextmanager
def naming_all_damaged(images: ImageSet) -> Iterator[None]:
    """Where one of `images` turns out to be damaged inside, look for all others; raises UsageError naming them."""
    try:
        yield
    except DamagedImageError as error:
        found = list(_damaged_among(images))
        if len(found) < 2:
            raise
        names = ", ".join(f"{one.name} ({one.reason})" for one in found[:LISTED])
        more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
        raise UsageError(
            f"{len(found)} of the {len(images):,} images of {images.name} are damaged: {names}{more}: delete or "
            "replace them, then run again."
        ) from error


def _damaged_among(images: ImageSet) -> Iterator[DamagedImageError]:
    def failure(row: int) -> DamagedImageError | None:
        try:
            images.read(row)
        except DamagedImageError as error:
            return error
        return None

    with (
        progress.bar("Looking for damaged images", len(images), "images") as advance,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="monoeval-decode") as pool,
    ):
        for error in pool.map(failure, range(len(images))):
            advance(1)
            if error is not None:
                yield error


def to_rgb(image: "Pillow.Image | NDArray[Any] | bytes | Path", name: str = "An image") -> Image:
    """Decode `image` to uint8 RGB [H, W, 3]; `name` (a file or row) is what errors call it.

    EXIF orientation is applied. Transparency is laid on white, the page that icons and clip art are drawn for;
    black would hide dark drawings. 16-bit grey is divided by 257, so that 65,535 becomes 255. CMYK, also
    Adobe's inverted JPEGs, is converted without a colour profile. Of an animation the first frame is taken.
    Arrays are uint8, bool or uint16 of shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
    Raises DamagedImageError for a damaged file, MonoevalError for a missing one or pixels of another kind.
    """
    if isinstance(image, np.ndarray):
        return _array(image, name)
    if isinstance(image, Pillow.Image):
        return _decode(image, name)
    if isinstance(image, Path):
        name = str(image) if name == "An image" else name
        try:
            image = image.read_bytes()
        except OSError as error:
            reason = error.strerror
            raise MonoevalError(f"{name} cannot be read ({reason}): put it back, then run again.") from error
    try:
        with Pillow.open(io.BytesIO(image)) as opened:
            return _decode(opened, name)
    except _BROKEN as error:
        raise _damaged(name, error) from error


def _decode(image: Pillow.Image, name: str) -> Image:
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            pixels = np.asarray(image)
            if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= 65535:
                pixels = pixels.astype(np.uint16)  # how Pillow holds some 16-bit greys
            return _array(pixels, name)
        if image.has_transparency_data:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # palettes with transparency given as bytes
                image = image.convert("RGBA")
            image = Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    except _BROKEN as error:
        raise _damaged(name, error) from error


def _array(pixels: NDArray[Any], name: str) -> Image:
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype != np.uint8:
        if pixels.dtype.newbyteorder("=") != np.uint16:
            raise MonoevalError(f"{name} holds {pixels.dtype} pixels: convert it to 8-bit RGB or 16-bit grey.")
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise MonoevalError(f"{name} has the shape {pixels.shape}: images are [H, W] or [H, W, 1, 3 or 4].")
    if pixels.shape[2] == 4:
        return _decode(Pillow.fromarray(np.ascontiguousarray(pixels)), name)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _damaged(name: str, error: Exception) -> DamagedImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "not an image"  # Pillow's own words name an object in memory
    return DamagedImageError(name, reason)
