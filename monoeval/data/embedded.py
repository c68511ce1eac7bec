"""Data sets that come with the tool: small, and there without a network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Data, Image, ImageSet, Ints
from monoeval.keys import key

CLASS_NAMES = tuple("0123456789")

FORM_STARTS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667)
"""First rows of the forms in `load_digits`; see `digits`."""
FIRST_TEST_FORM = 9


def digits() -> Data:
    """scikit-learn's handwritten digits [8, 8], counts 0-16 scaled to 0-255; 1,157 train and 640 test rows.

    The rows are the test part of the UCI optdigits set, which 13 people wrote, in the order of writing. Their
    labels repeat one text of 130 digits: 0-9 three times, then a fixed shuffled hundred; rows left out by UCI
    make some repeats a little shorter, and the last row of the third has a 3 where the text has an 8. A form
    starts wherever that text starts again, which gives 14 forms, so one person probably filled in two. The first
    9 forms train and the last 5 test (36 %). Forms stand for writers as `groups`; this keeps writers apart as
    well as the order allows, which is approximately: nothing in the data names the writer, and one may be on
    both sides of the cut.
    """
    labels = _load("digits")[1]
    forms = np.searchsorted(FORM_STARTS, np.arange(len(labels)), side="right") - 1
    return _split("digits", labels, forms, forms >= FIRST_TEST_FORM)


def digits_printed() -> Data:
    """Printed digits [8, 8] of 21 faces, reduced as the handwritten ones were: a target for `digits`.

    The 5 Computer Modern faces train (300 rows), the 16 others test (960 rows); `groups` are faces.
    `monoeval.data.make_digits_printed` made them.
    """
    from monoeval.data.make_digits_printed import TRAIN_FACES

    labels = _load("digits-printed")[1]
    faces = _printed()["face"].astype(np.int64)
    return _split("digits-printed", labels, faces, faces >= len(TRAIN_FACES))


@cache
def _printed() -> dict[str, NDArray[np.uint8]]:
    with files("monoeval.data").joinpath("digits_printed.npz").open("rb") as stream:
        arrays = np.load(stream, allow_pickle=False)
        return {name: arrays[name] for name in ("images", "labels", "face")}


@cache
def _load(name: str) -> tuple[NDArray[np.uint8], Ints]:
    """Images uint8 [N, 8, 8], 0-255, and labels."""
    counts, labels = _handwritten() if name == "digits" else (_printed()["images"], _printed()["labels"])
    return np.round(counts * (255 / 16)).astype(np.uint8), labels.astype(np.int64)


def _handwritten() -> tuple[NDArray[np.float64], Ints]:
    """What scikit-learn's `load_digits` gives: read beside it where it lies, as importing it takes two seconds."""
    found = find_spec("sklearn")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            rows = np.loadtxt(file, delimiter=",")
            return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    source = load_digits()
    return source.images, source.target


@dataclass(frozen=True)
class _Read:
    """Reads one row of an embedded set, which each process loads by itself; its state is a name."""

    name: str

    def __call__(self, row: int) -> Image:
        return np.repeat(_load(self.name)[0][row][:, :, None], 3, axis=2)


def _split(name: str, labels: Ints, groups: Ints, is_test: NDArray[np.bool_]) -> Data:
    images = _load(name)[0]
    whole = ImageSet(
        name=name,
        labels=labels,
        class_names=CLASS_NAMES,
        ids=np.array([f"{name}/{row:04d}" for row in range(len(labels))]),
        groups=groups,
        fingerprint=key([name, images.tobytes().hex(), labels.tolist()]),
        read=_Read(name),
    )
    return Data(train=whole.take(np.flatnonzero(~is_test)), test=whole.take(np.flatnonzero(is_test)))


EMBEDDED: dict[str, Callable[[], Data]] = {"digits": digits, "digits-printed": digits_printed}
