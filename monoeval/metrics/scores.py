"""Scores of class scores, on numpy arrays; a class whose logit is -inf has probability zero."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monoeval.errors import MonoevalError
from monoeval.metrics.calibration import tempered

Logits = NDArray[np.floating]
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class RowScores:
    """What is kept of each row [n]: enough for paired tests, calibration and detection without the images."""

    prediction: NDArray[np.int32]
    log_loss: NDArray[np.float32]  # nats; infinite where the true class cannot be predicted
    max_softmax: NDArray[np.float32]
    energy: NDArray[np.float32]  # -logsumexp of the logits: low where the classifier is sure (Liu et al. 2020)
    tempered: NDArray[np.float32]  # [n, G] for `metrics.calibration`; in memory only


def row_scores(logits_nc: Logits, labels_n: Labels) -> RowScores:
    """Prediction, log-loss, largest probability and energy of each row; computed in float64.

    Raises MonoevalError where a row of logits holds NaN, +inf, or nothing but -inf.
    """
    logits = np.asarray(logits_nc, dtype=np.float64)
    if len(logits) == 0:
        empty = np.empty(0, dtype=np.float32)
        return RowScores(np.empty(0, dtype=np.int32), empty, empty, empty, tempered(logits))
    top = logits.max(1)
    broken = int((~np.isfinite(top)).sum())
    if broken:
        raise MonoevalError(
            f"{broken} of {len(logits)} rows have class scores that are not numbers: fit again in fp32."
        )
    shifted = logits - top[:, None]
    log_sum = np.log(np.exp(shifted).sum(1))
    return RowScores(
        prediction=logits.argmax(1).astype(np.int32),
        log_loss=(log_sum - shifted[np.arange(len(logits)), labels_n]).astype(np.float32),
        max_softmax=np.exp(-log_sum).astype(np.float32),
        energy=-(log_sum + top).astype(np.float32),
        tempered=tempered(logits),
    )


def accuracy(logits_nc: Logits, labels_n: Labels) -> float:
    """Share of rows whose largest logit is the true class; the first of equal ones counts. NaN for no rows."""
    return float((np.argmax(logits_nc, 1) == labels_n).mean()) if len(labels_n) else float("nan")


def area_under_levels(levels: ArrayLike, accuracies: ArrayLike) -> float:
    """Mean height of the piecewise linear accuracy curve over its levels, which may come in any order.

    Raises MonoevalError for fewer than two distinct levels.
    """
    x, y = np.asarray(levels, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    if len(np.unique(x)) < 2 or x.shape != y.shape:
        raise MonoevalError("An area under a curve needs two or more levels, with one accuracy each.")
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))


def relative_accuracy(accuracy: float, clean: float) -> float:
    """Accuracy as a share of the clean accuracy of the same arm; NaN where that is zero."""
    return accuracy / clean if clean > 0 else float("nan")
