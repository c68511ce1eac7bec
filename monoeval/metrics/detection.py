"""Telling rows of the data from rows of elsewhere by one number a row; numpy alone."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monoeval.errors import MonoevalError

Floats = NDArray[np.float64]

SCORES = {"max_softmax": 1, "energy": -1, "neighbour_distance": -1}
"""What is kept of each row and can tell them apart → the sign that makes it high for rows of the data.

The largest probability (Hendrycks and Gimpel 2017), the energy −log Σ exp of the logits (Liu et al. 2020) and the
distance to the k-th nearest training row (Sun et al. 2022).
"""
ACCEPTED = 0.95


def placements(positive_n: ArrayLike, negative_m: ArrayLike) -> tuple[Floats, Floats]:
    """Share of negative rows below each positive row [n], and of positive rows above each negative one [m].

    A tie counts half. The mean of either is the AUROC, and their variances are those of DeLong, DeLong and
    Clarke-Pearson (Biometrics 44, 1988). Raises MonoevalError where a side is empty or a score is NaN.
    """
    positive, negative = (np.asarray(side, dtype=np.float64) for side in (positive_n, negative_m))
    if not len(positive) or not len(negative):
        raise MonoevalError("Rows can only be told apart where there are some on both sides: check the target.")
    if np.isnan(positive).any() or np.isnan(negative).any():
        raise MonoevalError("Some rows have scores that are not numbers: look for failed trials in the run.")

    def below(values: Floats, others: Floats) -> Floats:
        ordered = np.sort(others)
        places = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
        return np.asarray(places / (2 * len(others)))

    return below(positive, negative), 1 - below(negative, positive)


def auroc(positive_n: ArrayLike, negative_m: ArrayLike) -> float:
    """Chance that a positive row scores above a negative one, a tie counting half; errors as `placements`."""
    return float(placements(positive_n, negative_m)[0].mean())


def false_positive_rate(positive_n: ArrayLike, negative_m: ArrayLike, accepted: float = ACCEPTED) -> float:
    """Share of negative rows at or above the highest threshold that `accepted` of the positive rows reach.

    With `accepted` 0.95 this is FPR95. It depends on which side is called positive; errors as `placements`.
    """
    placements(positive_n, negative_m)  # checks both
    positive = np.sort(np.asarray(positive_n, dtype=np.float64))[::-1]
    needed = int(np.ceil(accepted * len(positive) - 1e-9))  # 0.95 · 20 is 19, whatever the last bit says
    return float((np.asarray(negative_m, dtype=np.float64) >= positive[max(needed, 1) - 1]).mean())


def linearised(positive_n: ArrayLike, negative_m: ArrayLike) -> tuple[Floats, Floats]:
    """Values of the rows [n], [m] whose mean over all n + m is the AUROC and whose spread is its DeLong variance.

    With R = n + m rows and A the AUROC, A + (R/n)(V − A) for the placement V of a positive row, and likewise with
    R/m. Differences of two arms in these, row by row, are what paired intervals are made of.
    """
    of_positive, of_negative = placements(positive_n, negative_m)
    area, rows = of_positive.mean(), len(of_positive) + len(of_negative)
    return (
        area + rows / len(of_positive) * (of_positive - area),
        area + rows / len(of_negative) * (of_negative - area),
    )


def detection(
    inside: Mapping[str, ArrayLike], outside: Mapping[str, ArrayLike], positive: str = "id"
) -> dict[str, float]:
    """`auroc_…` and `fpr95_…` of each of `SCORES` that both have; `positive` is `id` or `ood`."""
    found = {}
    for name, sign in SCORES.items():
        if name not in inside or name not in outside:
            continue
        within, beyond = (sign * np.asarray(side[name], dtype=np.float64) for side in (inside, outside))
        sides = (within, beyond) if positive == "id" else (-beyond, -within)
        found[f"auroc_{name}"] = auroc(*sides)
        found[f"fpr95_{name}"] = false_positive_rate(*sides)
    return found
