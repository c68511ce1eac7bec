"""What a backbone sees of image sets, decoded once for all trainings and tests that ask for it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil
from numpy.typing import NDArray

from monoeval import progress
from monoeval.backbones.preprocess import Preprocess
from monoeval.data.images import ImageSet, Ints
from monoeval.training.squares import prepared


@dataclass(frozen=True)
class _Held:
    """The squares of a whole set, of which some are there."""

    pixels: NDArray[np.uint8]  # [N, S, S, 3]
    there: NDArray[np.bool_]  # [N]

    @property
    def missing_bytes(self) -> int:
        return int((~self.there).sum()) * self.pixels[:1].nbytes

    @property
    def filled_bytes(self) -> int:
        return self.pixels.nbytes - self.missing_bytes


class Pictures:
    """Squares that stay in memory, those of the sets asked for last, as long as a set takes at most half of it."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, bool, Preprocess], _Held] = {}  # the one asked for last at the end

    def of(self, images: ImageSet, rows: Ints, preprocess: Preprocess) -> NDArray[np.uint8]:
        """uint8 [n, S, S, 3] of `rows` [n], not to be written to; what is not there is decoded by threads."""
        place = images.fingerprint, images.cropped, preprocess
        held = self._held.pop(place, None) or self._room_for(images, preprocess.image_size)
        if held is None:
            return np.concatenate([*_read(images, rows, preprocess), np.empty((0, *_shape(preprocess)), np.uint8)])
        self._held[place] = held
        missing = np.unique(rows[~held.there[rows]])
        at = 0
        for chunk in _read(images, missing, preprocess):
            some = missing[at : at + len(chunk)]
            held.pixels[some], held.there[some] = chunk, True
            at += len(chunk)
        whole = len(rows) == len(images) and bool((rows == np.arange(len(rows))).all())
        return held.pixels if whole else held.pixels[rows]

    def _room_for(self, images: ImageSet, size: int) -> _Held | None:
        """An empty set, for which older ones make room; None where all of them could not."""
        needed = 2 * len(images) * size * size * 3
        if needed > _free(self._held) + sum(held.filled_bytes for held in self._held.values()):
            return None
        while self._held and needed > _free(self._held):
            self._held.pop(next(iter(self._held)))
        return _Held(np.empty((len(images), size, size, 3), np.uint8), np.zeros(len(images), np.bool_))


def _free(held: dict[tuple[str, bool, Preprocess], _Held]) -> int:
    """Free memory, less what sets will take once they are filled."""
    return int(psutil.virtual_memory().available) - sum(one.missing_bytes for one in held.values())


def _shape(preprocess: Preprocess) -> tuple[int, int, int]:
    return preprocess.image_size, preprocess.image_size, 3


def _read(images: ImageSet, rows: Ints, preprocess: Preprocess) -> Iterator[NDArray[np.uint8]]:
    with progress.bar(f"Reading {images.name}", len(rows), "images") as advance:
        for chunk in prepared(images, rows, preprocess):
            yield chunk
            advance(len(chunk))
