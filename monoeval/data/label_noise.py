"""Wrong training labels: exactly as many as asked, never the true class."""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import Ints
from monoeval.errors import UsageError
from monoeval.keys import draw_seed


def symmetric(labels: Ints, n_classes: int, rate: float, draw: int) -> Ints:
    """Give exactly floor(rate · N) rows of `labels` [N] another class, each other class equally likely.

    The rows are drawn without replacement from the clean labels, so no row is flipped twice. The result is a
    function of the arguments alone; rates of one draw have streams of their own and are not nested.
    Raises UsageError for a rate outside [0, 1] or fewer than two classes.
    """
    if not 0 <= rate <= 1:
        raise UsageError(f"A label noise rate of {rate:g} is impossible: choose one from 0 to 1.")
    if n_classes < 2:
        raise UsageError(f"Label noise needs at least two classes, and there is {n_classes}.")
    noisy = np.array(labels, dtype=np.int64)
    # As a fraction of the decimal that was typed: 0.29 · 100 is 28.999… in floating point.
    count = int(Fraction(str(float(rate))) * len(noisy))
    rng = np.random.default_rng(draw_seed("label-noise", "symmetric", float(rate), draw))
    rows = rng.choice(len(noisy), size=count, replace=False)
    noisy[rows] = (noisy[rows] + rng.integers(1, n_classes, size=count)) % n_classes
    return noisy


def label_signal(rate: float, n_classes: int) -> float:
    """σ = (1 − r) − r / (K − 1): how much likelier the true class is than each other one.

    0 is pure noise and below 0 labels point away from the truth: such levels are negative controls.
    """
    return round((1 - rate) - rate / (n_classes - 1), 12)  # exactly 0 where only rounding keeps it above


def realised(clean: Ints, noisy: Ints, n_classes: int) -> tuple[float, NDArray[np.int64]]:
    """The share of changed labels, and how often clean class i became j, as counts [K, K]."""
    counts = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(counts, (clean, noisy), 1)
    changed = int(counts.sum() - np.trace(counts))
    return changed / max(len(clean), 1), counts
