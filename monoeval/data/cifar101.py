"""CIFAR-10.1 (Recht et al. 2018) as it is published: two arrays, of version 6."""

from functools import partial
from pathlib import Path

import numpy as np

from monoeval.data.arrays import array, row_of
from monoeval.data.fingerprint import file_keys
from monoeval.data.hierarchies import CIFAR10_CLASSES
from monoeval.data.source import Source, Splits
from monoeval.errors import MonoevalError

PIXELS, LABELS = "cifar10.1_v6_data.npy", "cifar10.1_v6_labels.npy"


def cifar101_splits(root: Path) -> Splits:
    """One split of the two files in `root`; labels are CIFAR-10's, in the alphabetical order of its classes.

    Raises MonoevalError where one of them is missing or they are not those of CIFAR-10.1.
    """
    return {"": partial(_source, root)}


def _source(root: Path) -> Source:
    pixels, labels = (array(root / name) for name in (PIXELS, LABELS))
    fit = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 32, 32, 3) and labels.shape == (len(pixels),)
    if not fit or labels.dtype.kind not in "iu" or not np.isin(labels, range(10)).all():
        raise MonoevalError(
            f"{root} holds {pixels.dtype} {list(pixels.shape)} and labels {labels.dtype} {list(labels.shape)}, "
            f"not the images and labels of CIFAR-10.1: download {PIXELS} and {LABELS} again."
        )
    return Source(
        labels=labels.astype(np.int64),
        names=tuple(sorted(CIFAR10_CLASSES)),
        ids=np.array([f"v6/{row:07d}" for row in range(len(labels))]),
        keys=file_keys(root, [PIXELS, LABELS]),
        read=partial(row_of, str((root / PIXELS).resolve())),
    )
