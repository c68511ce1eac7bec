"""Label noise that depends on the image (part-dependent: Xia et al. 2020), from pixels, so alike for every arm."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Image, ImageSet, Ints
from monoeval.errors import UsageError
from monoeval.files import CannotWriteError, atomic, cache_dir
from monoeval.keys import draw_seed, key
from monoeval.progress import bar

log = logging.getLogger("monoeval")

SIDE = 32
"""Images are resized to this many pixels a side, whatever their shape."""
SPREAD = 0.1
"""Standard deviation of the flip rates, before they are cut to [0, 1]."""
CHUNK = 256
READERS = 4


def instance(images: ImageSet, rate: float, draw: int) -> Ints:
    """Labels [N] after instance noise: row i is flipped with probability q_i, to a class that its pixels decide.

    q_i is normal with mean `rate` and standard deviation 0.1, cut to [0, 1] (so its mean is a little more than a
    small rate). With x_i the pixels in [0, 1] of the image at 32 × 32 RGB, y its class and W[y] a standard normal
    matrix [3072, K], the scores are A = x_i·W[y] with A[y] = −∞, and a flipped row gets class c with probability
    softmax(A)_c. All draws are functions of (row id, class name, draw), so not of the rows' order or number.
    Which class a row would be given is the same at every rate; whether it is flipped is drawn for each.
    """
    if not 0 < rate < 1:
        raise UsageError(f"Instance label noise of rate {rate:g} is impossible: choose one between 0 and 1.")
    flipped = _uniform(images.ids, "flip", rate, draw) < flip_rates(_uniform(images.ids, "rate", rate, draw), rate)
    return np.where(flipped, second_labels(images, draw), images.labels)


def flip_rates(uniform: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Quantiles of the normal distribution around `rate` cut to [0, 1]."""
    from scipy.special import ndtr, ndtri

    low, high = ndtr(-rate / SPREAD), ndtr((1 - rate) / SPREAD)
    rates: NDArray[np.float64] = rate + SPREAD * ndtri(low + uniform * (high - low))
    return rates.clip(0, 1)


def second_labels(images: ImageSet, draw: int) -> Ints:
    """The class [N] that each row is given where it is flipped; never its own.

    Every image is read once for a draw, a chunk at a time, and the result is kept in the cache.
    """
    if len(images.class_names) < 2:
        raise UsageError("Label noise needs at least two classes, and there is 1.")
    path = cache_dir() / "labels" / f"{key(['instance', SIDE, images.fingerprint, draw])}.npy"
    try:
        kept: Ints = np.load(path, allow_pickle=False)
        if kept.shape == images.labels.shape:
            return kept.astype(np.int64)
    except (OSError, ValueError):
        pass  # not there, or damaged: made now
    made = _second_labels(images, draw)
    try:
        with atomic(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, made.astype(np.int32))
    except CannotWriteError as error:
        log.warning("%s Without it the next run reads all images again.", error)
    return made


def _second_labels(images: ImageSet, draw: int) -> Ints:
    uniform = _uniform(images.ids, "class", draw)
    made = np.empty(len(images), dtype=np.int64)
    n_classes = len(images.class_names)

    def pixels(row: int) -> NDArray[np.float64]:
        return small(images.read(row)).reshape(-1) / 255

    with bar("Drawing label noise", len(images), "images") as advance, ThreadPoolExecutor(READERS) as pool:
        # one class's matrix at a time: those of all classes would be K² · 3072 numbers
        for label, name in enumerate(images.class_names):
            rows = np.flatnonzero(images.labels == label)
            rng = np.random.default_rng(draw_seed("label-noise", "instance", draw, name))
            weights_dk = rng.standard_normal((3 * SIDE**2, n_classes))
            for start in range(0, len(rows), CHUNK):
                some = rows[start : start + CHUNK]
                scores_nk = np.stack(list(pool.map(pixels, some.tolist()))) @ weights_dk
                scores_nk[:, label] = -np.inf
                chance_nk = np.exp(scores_nk - scores_nk.max(axis=1, keepdims=True)).cumsum(axis=1)
                wanted_n = uniform[some] * chance_nk[:, -1]
                made[some] = (chance_nk <= wanted_n[:, None]).sum(axis=1)
                advance(len(some))
    return made


def small(image: Image) -> Image:
    """The image at 32 × 32, by Pillow's bilinear filter, which averages what it shrinks in whole numbers."""
    from PIL import Image as Pillow

    if image.shape[:2] == (SIDE, SIDE):
        return image
    return np.asarray(Pillow.fromarray(image).resize((SIDE, SIDE), Pillow.Resampling.BILINEAR))


def _uniform(ids: NDArray[np.str_], *what: str | float) -> NDArray[np.float64]:
    """A number in [0, 1) for each row id."""
    seeds = np.array([draw_seed("label-noise", "instance", *what, str(name)) for name in ids], dtype=np.uint64)
    return (seeds >> np.uint64(10)) / 2.0**53
