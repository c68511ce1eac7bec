"""Scores of class scores, on numpy arrays; a class whose logit is -inf has probability zero."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

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

    The log-loss of a row of no class (label −1) is NaN.

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
        log_loss=np.where(
            np.asarray(labels_n) < 0, np.nan, log_sum - shifted[np.arange(len(logits)), labels_n]
        ).astype(np.float32),
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
    weights, y = level_weights(levels), np.asarray(accuracies, dtype=np.float64)
    if weights.shape != y.shape:
        raise MonoevalError("An area under a curve needs two or more levels, with one accuracy each.")
    return float(weights @ y)


def level_weights(levels: ArrayLike) -> NDArray[np.float64]:
    """Weights [L], which sum to 1, of the accuracies at `levels` [L] in the area under them (trapezoids).

    Raises MonoevalError for fewer than two distinct levels.
    """
    x = np.asarray(levels, dtype=np.float64)
    if len(np.unique(x)) < 2:
        raise MonoevalError("An area under a curve needs two or more levels, with one accuracy each.")
    order = np.argsort(x, kind="stable")
    steps = np.diff(x[order]) / (2 * (x.max() - x.min()))
    weights = np.zeros(len(x))
    weights[order[1:]] += steps
    weights[order[:-1]] += steps
    return weights


def balanced(values_ru: NDArray[np.float64], labels_r: Labels) -> NDArray[np.float64]:
    """`values_ru` [R, U] turned so that the mean over rows counts every class of `labels_r` [R] alike.

    Row i of class c, of n_c rows with mean m_c, becomes M + (v_i − m_c) R/(K n_c) √(n_c/(n_c − 1)), M the mean
    over the K classes of m_c (balanced accuracy, where the values are correctness). The spread of these rows is
    that of M for given numbers of rows a class; weights R/(K n_c) alone would add what differs between classes.
    """
    _, label, count = np.unique(labels_r, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), values_ru.shape[1]))
    np.add.at(sums, label, values_ru)
    class_mean = sums / count[:, None]
    scale = len(label) / (len(count) * count) * np.sqrt(count / np.maximum(count - 1, 1))
    made: NDArray[np.float64] = class_mean.mean(0) + (values_ru - class_mean[label]) * scale[label, None]
    return made


def relative_accuracy(accuracy: float, clean: float) -> float:
    """Accuracy as a share of the clean accuracy of the same arm; NaN where that is zero."""
    return accuracy / clean if clean > 0 else float("nan")


@dataclass(frozen=True)
class StandardLine:
    """logit(shifted) = slope · logit(clean) + intercept, as standard models have it."""

    slope: float
    intercept: float
    r2: float
    """Share of the variance of logit(shifted) that the line explains."""
    models: int
    low: float
    high: float
    """The clean accuracies that it was fitted between."""


def standard_line(clean: ArrayLike, shifted: ArrayLike) -> StandardLine:
    """The least-squares line through the logits of accuracies [M] of standard models (Taori et al. 2020).

    Accuracies lie strictly between 0 and 1, and the clean ones are not all alike.
    """
    from scipy.stats import linregress  # slow to import, and for few reports

    x, y = (np.asarray(some, dtype=np.float64) for some in (clean, shifted))
    fit = linregress(logit(x), logit(y))
    return StandardLine(
        slope=float(fit.slope),
        intercept=float(fit.intercept),
        r2=float(fit.rvalue) ** 2,
        models=len(x),
        low=float(x.min()),
        high=float(x.max()),
    )


def effective_robustness(shifted: float, clean: float, slope: float, intercept: float) -> float:
    """Accuracy under a shift beyond what standard models of this clean accuracy have (Taori et al. 2020).

    shifted − σ(slope · logit(clean) + intercept), accuracies in [0, 1]. The line is that of `standard_line`, of
    models scored on the same two test sets; none comes with the tool. NaN where the line has no value.
    """
    with np.errstate(invalid="ignore"):
        return float(shifted - expit(slope * logit(clean) + intercept))


def relative_robustness(shifted: float, shifted_of_baseline: float) -> float:
    """Accuracy under a shift that an intervention adds to its baseline's (Taori et al. 2020).

    It is also positive where the intervention only raised clean accuracy, which the effective one leaves out.
    """
    return shifted - shifted_of_baseline


ALEXNET_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on the published files of ImageNet-C, mean over severities (Hendrycks and Dietterich 2019)."""
ALEXNET_CLEAN_ERROR = 0.4348


def mean_corruption_error(errors: Mapping[str, ArrayLike], clean_error: float | None = None) -> float:
    """The mCE of Hendrycks and Dietterich (2019): error as a share of AlexNet's, mean over the 15 corruptions.

    `errors` holds the five severities' errors, 0 to 1, of each corruption on the published files of ImageNet-C; on
    other data AlexNet's errors mean nothing. With `clean_error` it is the relative mCE, which subtracts the clean
    error above and below. AlexNet itself has 1. Raises MonoevalError for other corruptions or severities.
    """
    if set(errors) != set(ALEXNET_ERROR):
        odd = ", ".join(sorted(set(errors) ^ set(ALEXNET_ERROR)))
        raise MonoevalError(f"An mCE is of the 15 scored corruptions of ImageNet-C, all of them: see to {odd}.")
    above, below = (0.0, 0.0) if clean_error is None else (clean_error, ALEXNET_CLEAN_ERROR)
    shares = []
    for name, alexnet in ALEXNET_ERROR.items():
        of_each = np.asarray(errors[name], dtype=np.float64)
        if of_each.shape != (5,):
            raise MonoevalError(f"An mCE needs one error for each of five severities, also for {name}.")
        shares.append((of_each.mean() - above) / (alexnet - below))
    return float(np.mean(shares))
