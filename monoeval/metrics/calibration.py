"""Whether a classifier's confidence is its accuracy, as it stands and after temperature scaling; numpy alone."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from monoeval.errors import MonoevalError

BINS = 15
_HALF_OCTAVES = np.arange(-14, 15)
TEMPERATURES = 2.0 ** (_HALF_OCTAVES / 2)
"""Where log-sum-exps are kept [G]: 1/128 to 128 in half octaves; one is looked for in 1/64 to 64."""
_BLOCK = 1 << 15  # logits at a time: what stays in a core's cache while it is squared again and again


def expected_calibration_error(
    confidence_n: NDArray[np.floating], correct_n: NDArray[np.bool_], bins: int = BINS
) -> float:
    """Σ_b n_b/n · |accuracy_b − mean confidence_b| over equal-width bins ((b−1)/bins, b/bins] of confidence.

    The definition of Guo et al. (ICML 2017), with their 15 bins of the largest softmax probability. It is biased
    upwards: a perfectly calibrated classifier scores about Σ_b √(2·p_b(1 − p_b)·n_b/π)/n, p_b the accuracy in bin
    b, which falls with the number of rows, so compare values of equally many rows. NaN for no rows.
    """
    if not len(confidence_n):
        return float("nan")
    confidence = np.asarray(confidence_n, dtype=np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(place, weights=np.asarray(correct_n, dtype=np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def tempered(logits_nc: NDArray[np.floating]) -> NDArray[np.float32]:
    """log Σ_c exp((z_c − max z) / T) [n, G] for each of `TEMPERATURES`: all that scaling needs of the logits.

    A class whose logit is -inf has probability zero. Two exponentials a logit; the rest are squares of those, as
    halving T squares exp(z/T).
    """
    logits = np.asarray(logits_nc, dtype=np.float64)
    made = np.empty((len(logits), len(TEMPERATURES)), dtype=np.float32)
    step = max(1, _BLOCK // max(1, logits.shape[1]))
    for start in range(0, len(logits), step):
        shifted = logits[start : start + step]
        shifted = shifted - shifted.max(1, keepdims=True)
        for first in (len(TEMPERATURES) - 1, len(TEMPERATURES) - 2):
            power = np.exp(shifted / TEMPERATURES[first])
            for place in range(first, -1, -2):
                made[start : start + step, place] = np.log(power.sum(1))
                np.square(power, out=power)
    return made


def temperature(tempered_ng: NDArray[np.floating], margin_n: NDArray[np.floating]) -> float:
    """The T in [1/64, 64] of the smallest mean log-loss of softmax(z / T), to a 32nd of an octave.

    `margin_n` is max z − z of the true class. Between the half octaves of `tempered_ng` the mean log-sum-exp is a
    cubic spline in log T. Rows whose true class cannot be predicted lose infinitely at any T and are left out;
    where none is left, T is 1.
    """
    finite = np.isfinite(margin_n)
    if not finite.any():
        return 1.0
    octaves = np.arange(-6 * 32, 6 * 32 + 1) / 32
    mean_g = tempered_ng[finite].mean(0, dtype=np.float64)
    losses = _spline()(octaves) @ mean_g + margin_n[finite].mean(dtype=np.float64) * 2.0**-octaves
    return float(2.0 ** octaves[np.argmin(losses)])


def scaled_confidence(tempered_ng: NDArray[np.floating], at: float) -> NDArray[np.float64]:
    """Largest probability [n] of softmax(z / `at`), by the spline of `temperature` (to about 0.002)."""
    if not TEMPERATURES[0] <= at <= TEMPERATURES[-1]:
        raise MonoevalError(f"A temperature of {at:g} is outside {TEMPERATURES[0]:g} to {TEMPERATURES[-1]:g}.")
    made: NDArray[np.float64] = np.exp(-np.maximum(tempered_ng @ _spline()(np.log2(at)), 0.0))
    return made


@cache
def _spline() -> CubicSpline:
    """log2 T → the weights [G] by which a cubic spline takes the values at `TEMPERATURES`."""
    return CubicSpline(_HALF_OCTAVES / 2, np.eye(len(TEMPERATURES)))


def calibration(
    log_loss_n: NDArray[np.floating],
    max_softmax_n: NDArray[np.floating],
    correct_n: NDArray[np.bool_],
    tempered_ng: NDArray[np.floating],
    fold_n: NDArray[np.bool_],
) -> dict[str, float]:
    """`ece`, `ece_t` after temperature scaling, and the `temperature`, of one classifier's test rows.

    Selection keeps no held-out logits, so the temperature is cross-fitted on the test rows: that of each half
    (`fold_n`, a function of the row's id alone) is fitted by log-loss on the other half, and one error is
    computed over all rows. It so shows what one number can mend when fitted on labels like those of the test,
    not what a temperature fitted under noisy labels or on unshifted images would. `temperature` is the geometric
    mean of the two.
    """
    margin = np.asarray(log_loss_n, dtype=np.float64) - tempered_ng[:, _HALF_OCTAVES == 0][:, 0]
    confidence = np.empty(len(correct_n))
    fitted = []
    for half in (fold_n, ~fold_n):
        fitted.append(temperature(tempered_ng[~half], margin[~half]))
        confidence[half] = scaled_confidence(tempered_ng[half], fitted[-1])
    return {
        "ece": expected_calibration_error(max_softmax_n, correct_n),
        "ece_t": expected_calibration_error(confidence, correct_n),
        "temperature": float(np.sqrt(fitted[0] * fitted[1])),
    }
