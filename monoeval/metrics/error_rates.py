"""One arm's accuracy, and the share of the baseline's errors that an arm avoids, with intervals."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit

from monoeval.metrics.components import Levels
from monoeval.metrics.paired import Interval, mean_interval, paired_difference


@dataclass(frozen=True)
class Proportion(Interval):
    """A share in [0, 1] with Wilson's interval, which never leaves [0, 1] and always has a width."""

    independent: float = 0.0
    """How many independent rows would give the same variance of the mean."""

    def at(self, level: float) -> tuple[float, float]:
        return _wilson(self.mean, self.independent, self.degrees_of_freedom, level)


def accuracy_interval(
    correct_ru: ArrayLike,
    groups_r: ArrayLike | None = None,
    level: float = 0.95,
    levels: Levels | None = None,
) -> Proportion:
    """Mean of `correct_ru` [R rows, U units], shares in [0, 1], with an interval for rows and units at random.

    Wilson's (Journal of the American Statistical Association 22, 1927) with a t quantile, and with as many rows as
    would, independent of each other, give the variance of `mean_interval`: p(1 − p)/Var. Where all are right
    (or wrong) that is the number of rows, or of clusters. A t interval fails where nearly all are right: at 98 %
    accuracy and 60 rows it holds the truth in fewer than three studies of four, and this one in more than 93 %
    (`tests/metrics`; at many seeds it falls to 88-92 % there, see `tests/studies/RESULTS.md`).

    Raises MonoevalError as `mean_interval` does.
    """
    found = _interval(np.asarray(correct_ru, dtype=np.float64), groups_r, level, levels)
    freedom = found.degrees_of_freedom
    spread = found.mean * (1 - found.mean)
    if spread > 0 and found.standard_error > 0:
        independent = spread / found.standard_error**2
    elif spread > 0:  # rows are alike, and units too, yet not all right: as many as there are answers
        independent = float(found.rows * found.units)
    else:
        independent = float(found.rows if groups_r is None else len(np.unique(np.asarray(groups_r))))
        freedom = independent - 1
    low, high = _wilson(found.mean, independent, freedom, level)
    changed = {"low": low, "high": high, "degrees_of_freedom": freedom}
    return Proportion(**{**vars(found), **changed}, independent=independent)


def _interval(
    values_ru: NDArray[np.float64], groups_r: ArrayLike | None, level: float, levels: Levels | None
) -> Interval:
    """`mean_interval`; where all rows are alike `paired_difference`, which never leaves these without a width."""
    alike = len(values_ru) > 0 and bool((values_ru == values_ru[:1]).all())
    return (paired_difference if alike else mean_interval)(values_ru, groups_r, level, levels)


def _wilson(mean: float, n: float, freedom: float, level: float) -> tuple[float, float]:
    if n <= 1:
        return 0.0, 1.0
    pull = float(stdtrit(freedom, 0.5 + level / 2)) ** 2 / n
    centre = (mean + pull / 2) / (1 + pull)
    half = float(np.sqrt(mean * (1 - mean) * pull + pull**2 / 4)) / (1 + pull)
    # at 0 and 1 an end is the mean itself, but for rounding
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means with its interval."""

    value: float
    low: float
    high: float


def relative_error_reduction(
    gain_ru: ArrayLike,
    wrong_ru: ArrayLike,
    groups_r: ArrayLike | None = None,
    level: float = 0.95,
    levels: Levels | None = None,
) -> Ratio | None:
    """Share of the baseline's errors that an arm avoids: mean gain / mean error; negative for a loss.

    `gain_ru` [R rows, U units] is the difference of correctness, `wrong_ru` [R, U] the baseline's errors, each in
    [0, 1]. The interval holds the ratios ρ for which gain − ρ · error does not differ from zero by
    `mean_interval` (Fieller, Journal of the Royal Statistical Society B 16, 1954), so the errors' own
    uncertainty counts, over rows and units alike. None where those are not above zero at `level`: any ratio would
    be possible. Raises MonoevalError as `mean_interval` does.
    """
    gain, wrong = np.asarray(gain_ru, dtype=np.float64), np.asarray(wrong_ru, dtype=np.float64)
    errors = _interval(wrong, groups_r, level, levels)
    if not errors.low > 0:
        return None

    def at(ratio: float) -> Interval:
        return _interval(gain - ratio * wrong, groups_r, level, levels)

    value = float(gain.mean()) / errors.mean
    if (gain == gain[:1]).all():  # no ratio but this one leaves rows alike, so others tell nothing of the gain
        gained = paired_difference(gain, groups_r, level, levels)
        return Ratio(value, gained.low / errors.mean, gained.high / errors.mean)
    found = at(value)
    step = (found.high - found.low) / errors.mean
    return Ratio(
        value,
        low=_end(lambda ratio: at(ratio).low, value, -step),
        high=_end(lambda ratio: at(ratio).high, value, step),
    )


def _end(bound: Callable[[float], float], start: float, step: float) -> float:
    """Where `bound` changes its sign, looked for from `start` in growing steps."""
    sign = np.sign(bound(start))
    while sign and np.sign(bound(start + step)) == sign:
        step *= 2
    return float(brentq(bound, start, start + step, xtol=1e-6)) if sign and step else start
