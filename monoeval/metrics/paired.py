"""Paired differences with intervals that hold for other test rows and other seeds, and what may be concluded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from monoeval.errors import MonoevalError
from monoeval.metrics.components import Levels, Shares, variance_of_mean

FEW = 5
"""Rows unlike the others, below which their number is too small for a t interval."""


@dataclass(frozen=True)
class Interval:
    """A mean with its t interval; differences of accuracies are shares, not points."""

    mean: float
    low: float
    high: float
    standard_error: float
    degrees_of_freedom: float
    smallest: float
    """The smallest true difference from zero that a two-sided 5 % test would find with 80 % power."""
    p_value: float
    """Two-sided, of the mean being zero."""
    units: int
    rows: int
    unit_share: float = 0.0
    """Share of the variance of the mean that comes from units; the rest is of rows and what neither explains."""
    shares: Shares | None = None
    """Whose doing the variance is; None where units move together, or where too few rows differ to tell."""

    def at(self, level: float) -> tuple[float, float]:
        """The interval's ends at another confidence level."""
        return _ends(self.mean, self.standard_error, self.degrees_of_freedom, level)

    def within(self, margin: float) -> bool:
        """Equivalence to zero by two one-sided 5 % tests: the 90 % interval lies inside ±`margin`."""
        low, high = self.at(0.90)
        return -margin < low and high < margin


@dataclass(frozen=True)
class Verdict:
    """What an arm's gain comes to."""

    kind: str
    sentence: str


def paired_difference(
    delta_ru: ArrayLike,
    groups_r: ArrayLike | None = None,
    level: float = 0.95,
    levels: Levels | None = None,
) -> Interval:
    """`mean_interval` of differences of correctness [R rows, U units], shares in [−1, 1].

    Where no row differs from another, all that is known of rows that do is that they are few: after n rows that
    are alike, at 97.5 % confidence at most a share of 1 − 0.025^(1/n) is not (Clopper and Pearson, Biometrika 26,
    1934), and each may differ by 1. The half-width of a 95 % interval is that bound at least, 3.7/n for many rows,
    while fewer than five rows are unlike the others: a row or two are no reason to be surer, and normal theory
    needs more. Rows count for it, not clusters: rows that are alike show nothing that those of a cluster have in
    common.
    """
    delta = np.asarray(delta_ru, dtype=np.float64)
    few = delta.ndim == 2 and len(delta) > 1 and (delta != np.median(delta, axis=0)).any(axis=1).sum() < FEW
    return mean_interval(delta, groups_r, level, levels, least=_unseen(len(delta)) if few else 0.0)


def mean_interval(
    values_ru: ArrayLike,
    groups_r: ArrayLike | None = None,
    level: float = 0.95,
    levels: Levels | None = None,
    *,
    least: float = 0.0,
) -> Interval:
    """Mean of `values_ru` [R rows, U units] with an interval for rows and units both drawn at random.

    Rows (test images) are crossed with units (seeds): v_iu = μ + a_i + b_u + e_iu, and by the mean squares of
    the two-way analysis of variance Var(mean) = (MS_rows + MS_units − MS_error) / (R·U); `metrics.components` has
    the details. One unit, or units that are all alike, give the one-sample t interval over rows. Simulated
    coverage is 92.5-97 % from three units on, and 87-97 % for two; few clusters have less
    (`tests/studies/RESULTS.md`; `tests/metrics` repeats a part). With `levels`, units are backbones, their
    adapters and draws, crossed; coverage is then 93-99 %, but 90-92 % where nearly all that is uncertain is of one
    kind of which there are two.

    `groups_r` [R] names the cluster (writer, video) of each row; rows are then replaced by linearised cluster
    totals t_gu = m_u + (G/R)·Σ_{i in g} (v_iu − m_u), m_u the unit's mean, which for clusters of one row are the
    rows themselves. With a single row or cluster nothing is known about others, and the interval is infinite. A
    standard error below `least` is raised to it, with R − 1 degrees of freedom.

    Raises MonoevalError where `values_ru` is empty or not finite, or `groups_r` has another length.
    """
    values = np.asarray(values_ru, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise MonoevalError(
            f"A difference needs rows and units, not an array of shape {values.shape}: check the runs."
        )
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).any(1).sum())
        raise MonoevalError(
            f"{bad} of {len(values)} paired rows are not numbers: look for failed trials in the run."
        )
    rows, units = values.shape
    if groups_r is not None:
        values = _cluster_totals(values, np.asarray(groups_r))
    mean = float(values.mean())
    found = variance_of_mean(values, levels)
    error, freedom, shares = float(np.sqrt(found.value)), found.degrees_of_freedom, found.shares
    if len(values) > 1 and least > error:
        error, freedom, shares = least, rows - 1.0, None
    low, high = _ends(mean, error, freedom, level)
    return Interval(
        mean=mean,
        low=low,
        high=high,
        standard_error=error,
        degrees_of_freedom=freedom,
        smallest=_times(float(stdtrit(freedom, 0.975) + stdtrit(freedom, 0.80)), error),
        p_value=_p_value(mean, error, freedom),
        units=units,
        rows=rows,
        unit_share=found.unit_share,
        shares=shares,
    )


def verdict(gain: Interval, versus_controls: Mapping[str, Interval], margin: float = 0.01) -> Verdict:
    """Judge an arm by its `gain` over its baseline and its differences from each control, as shares.

    "beyond the controls": 95 % intervals above zero against the baseline and every control (intersection-union,
    so no adjustment among them). "explained by controls": above the baseline, but equivalent to a control (90 %
    interval inside ±`margin`) or below one. "worse": below the baseline. "no gain": equivalent to the baseline.
    "gain, no controls": above the baseline with nothing else to compare. Otherwise "undetermined".
    """
    if gain.high < 0:
        return Verdict("worse", f"Loses {_points(-gain.mean)} against its baseline {_range(gain)}.")
    if gain.low <= 0 and gain.within(margin):
        return Verdict(
            "no gain", f"No gain over its baseline: {_range(gain, 0.90)} lies within ±{_points(margin)}."
        )
    if gain.low <= 0:
        return Verdict("undetermined", f"Undetermined against its baseline: {_signed(gain)}; {_sight(gain)}.")
    over = f"Gains {_points(gain.mean)} over its baseline {_range(gain)}"
    if not versus_controls:
        return Verdict("gain, no controls", f"{over}, with no control to hold it against.")
    name, least = min(versus_controls.items(), key=lambda item: item[1].low)
    if least.low > 0:
        return Verdict(
            "beyond the controls", f"{over} and beats every control, {name} by the least: {_signed(least)}."
        )
    for control, interval in sorted(versus_controls.items(), key=lambda item: item[1].mean):
        if interval.high < 0:
            return Verdict("explained by controls", f"{over}, but {control} gains more: {_signed(interval)}.")
        if interval.low <= 0 and interval.within(margin):
            as_much = (
                f"{over}, but {control} gains as much: {_range(interval, 0.90)} lies within ±{_points(margin)}"
            )
            return Verdict("explained by controls", f"{as_much}.")
    return Verdict("undetermined", f"{over}; undetermined against {name}: {_signed(least)}; {_sight(least)}.")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Scandinavian Journal of Statistics 6, 1979) of a family, in its order."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(x) for x in adjusted]


def _cluster_totals(delta: NDArray[np.float64], groups: NDArray[np.generic]) -> NDArray[np.float64]:
    if groups.shape != delta.shape[:1]:
        raise MonoevalError(
            f"{len(delta)} paired rows have {groups.size} groups: check the test set's group column."
        )
    names, group = np.unique(groups, return_inverse=True)
    unit_mean = delta.mean(0)
    totals = np.zeros((len(names), delta.shape[1]))
    np.add.at(totals, group, delta - unit_mean)
    made: NDArray[np.float64] = unit_mean + totals * (len(names) / len(delta))
    return made


def _unseen(n: int) -> float:
    """Standard error whose 95 % interval reaches what rows may do that are unlike `n` rows that are alike."""
    return float((1 - 0.025 ** (1 / n)) / stdtrit(n - 1.0, 0.975))


def _ends(mean: float, error: float, freedom: float, level: float) -> tuple[float, float]:
    half = _times(float(stdtrit(freedom, 0.5 + level / 2)), error)
    return mean - half, mean + half


def _times(quantile: float, error: float) -> float:
    return quantile * error if error > 0 else 0.0


def _p_value(mean: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(mean) / error))


def _number(share: float) -> str:
    return f"{100 * share:.1f}".replace("-", "−")


def _points(share: float) -> str:
    text = _number(share)
    return f"{text} point" if text == "1.0" else f"{text} points"


def _range(interval: Interval, level: float = 0.95) -> str:
    low, high = interval.at(level)
    return f"[{_number(low)}, {_number(high)}]"


def _signed(interval: Interval) -> str:
    sign = "+" if interval.mean > 0 else ""
    return f"{sign}{_points(interval.mean)} {_range(interval)}"


def _sight(interval: Interval) -> str:
    if not np.isfinite(interval.smallest):
        return "a single test row or group says nothing about others"
    return f"it could have seen ±{_points(interval.smallest)}"
