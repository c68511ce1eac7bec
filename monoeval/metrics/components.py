"""How sure a mean over test rows, backbones, adapters and draws is, and whose doing the uncertainty is."""

from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """How many backbones, adapters of each, and draws a crossed study has.

    Column (b · adapters + a) · draws + c of a table is backbone b, its adapter a and draw c.
    """

    backbones: int = 1
    adapters: int = 1
    draws: int = 1

    def __str__(self) -> str:
        return " × ".join(f"{count} {name}" for name, count in vars(self).items() if count > 1)


@dataclass(frozen=True)
class Shares:
    """Whose doing the variance of a mean is; the shares sum to 1."""

    backbone: float
    adapter: float
    draw: float
    interplay: float
    """Of a draw and a backbone (or adapter) that neither has alone; more of either shrinks it."""
    rows: float
    """All that more test rows would shrink."""


@dataclass(frozen=True)
class Variance:
    """An estimate of the variance of a mean."""

    value: float
    degrees_of_freedom: float
    unit_share: float
    """The part that more test rows would not shrink."""
    shares: Shares | None = None
    """None where units move together, so that their parts cannot be told apart."""


def variance_of_mean(delta_ru: Floats, levels: Levels | None = None) -> Variance:
    """Variance of the mean of all cells of `delta_ru` [R rows, U units], rows and units both drawn at random.

    Without `levels` each unit is a level of one factor that is crossed with rows. With them, adapters are nested
    in backbones (adapter 0 of two backbones has but its number in common), and draws, which are the same for all
    of these, are crossed with them. In a balanced design what is nested adds to the mean square of what it is
    nested in (Cornfield and Tukey, Annals of Mathematical Statistics 27, 1956), so adapters are averaged over and
    a two- or three-way table remains: see `_two_way` and `_three_way`. With one backbone, adapters take its place.
    An axis along which no cell differs holds copies of one level: nothing was drawn there.
    """
    if len(delta_ru) == 1:
        return Variance(np.inf, 1.0, 0.0)
    if levels is None:
        return _two_way(delta_ru)
    table_rbad = delta_ru.reshape(len(delta_ru), levels.backbones, levels.adapters, levels.draws)
    for axis in (1, 2, 3):
        first = table_rbad.take([0], axis)
        table_rbad = first if np.allclose(table_rbad, first, rtol=0, atol=1e-12) else table_rbad
    outer_rpd = table_rbad[:, 0] if table_rbad.shape[1] == 1 else table_rbad.mean(2)
    alone = 1 in outer_rpd.shape[1:]
    found = _two_way(outer_rpd.reshape(len(delta_ru), -1)) if alone else _three_way(outer_rpd)
    shares = _shares(table_rbad, outer_rpd, found.unit_share)
    return Variance(found.value, found.degrees_of_freedom, found.unit_share, shares)


def _part(table: Floats, *axes: int, within: tuple[int, ...] = ()) -> float:
    """The mean square of the effect of `axes`, nested in the axes `within`, divided by the number of cells.

    Its expectation is the sum of σ²_T / n_T over all components T that have these axes among theirs, n_T the
    number of their levels in the table: what they add to the variance of the mean.
    """
    for axis in range(table.ndim):
        if axis not in within:
            mean = table.mean(axis, keepdims=True)
            table = table - mean if axis in axes else mean
    freedom: int = prod(table.shape[axis] - 1 for axis in axes) * prod(table.shape[axis] for axis in within)
    return float((table**2).sum()) / (freedom * table.size)


def _component(table: Floats, *axes: int, within: tuple[int, ...] = ()) -> float:
    """What `axes` alone add to the variance of the mean, without what they share with other axes; may be < 0."""
    if any(table.shape[axis] == 1 for axis in axes):
        return 0.0
    others = [axis for axis, n in enumerate(table.shape) if n > 1 and axis not in (*axes, *within)]
    more = [some for n in range(len(others) + 1) for some in combinations(others, n)]
    return sum((-1.0) ** len(some) * _part(table, *axes, *some, within=within) for some in more)


def _two_way(delta_ru: Floats) -> Variance:
    """Rows × units: V = rows + units − rows×units, the parts being mean squares divided by R·U.

    Where V falls below the part of rows or of units, a component's estimate is negative; it is taken as zero,
    which leaves the larger of these two.
    """
    rows, units = delta_ru.shape
    of_rows = _part(delta_ru, 0)
    if units == 1:
        return Variance(of_rows, rows - 1.0, 0.0)
    of_units, of_both = _part(delta_ru, 1), _part(delta_ru, 0, 1)
    total = max(of_rows + of_units - of_both, of_rows, of_units)
    if total == 0:
        return Variance(0.0, rows - 1.0, 0.0)
    spread, share = of_rows**2 / (rows - 1), 0.0
    if of_units > of_both * (1 + 1e-9):  # equal ones are no matter of rounding
        spread += of_units**2 / (units - 1) + of_both**2 / ((rows - 1) * (units - 1))
        share = (of_units - of_both) / total
    harmonic = share / (units - 1) + (1 - share) / (rows - 1)
    freedom = _degrees_of_freedom(total, spread, harmonic, min(rows, units))
    return Variance(total, freedom, max(0.0, of_units - of_both) / total)


def _three_way(delta_rpd: Floats) -> Variance:
    """Rows × P × draws: V = R + P + D − RP − RD − PD + RPD, the parts being mean squares divided by all cells.

    Where the component of P or of draws is estimated as negative it is taken as zero, which leaves the two-way V
    after averaging over it: V is never less than either of the two.
    """
    rows, of_p, of_d = delta_rpd.shape
    parts = {axes: _part(delta_rpd, *axes) for n in (1, 2, 3) for axes in combinations(range(3), n)}
    total = sum((-1) ** (len(axes) + 1) * part for axes, part in parts.items())
    without = max((_two_way(delta_rpd.mean(axis)) for axis in (1, 2)), key=lambda found: found.value)
    if total <= without.value * (1 + 1e-9):
        return without
    spread = sum(part**2 / prod(delta_rpd.shape[axis] - 1 for axis in axes) for axes, part in parts.items())
    p, d, both = (max(0.0, _component(delta_rpd, *axes)) / total for axes in ((1,), (2,), (1, 2)))
    rest = max(0.0, 1 - p - d - both)
    harmonic = p / (of_p - 1) + d / (of_d - 1) + both / ((of_p - 1) * (of_d - 1)) + rest / (rows - 1)
    freedom = _degrees_of_freedom(total, spread, harmonic, min(rows, of_p, of_d))
    return Variance(total, freedom, max(0.0, 1 - parts[0,] / total))


def _degrees_of_freedom(total: float, spread: float, harmonic: float, fewest: int) -> float:
    """Satterthwaite's (Biometrics Bulletin 2, 1946), with two changes that keep the coverage nearer to 95 %.

    `spread` is Σ part² / its freedom. A component of units that is estimated as negative is taken as zero and
    brings no uncertainty of its own: counting it gave 98.4 % at three units that are alike. Where one of few
    units' variance dominates, the formula sees it estimated too large more often than too small and gives too
    many degrees of freedom (92 % where units have four times the variance of rows): there are never more than
    1/`harmonic`, the harmonic mean of those of the components, weighted by these. At least one less than the
    `fewest` levels, which a subtracted part can push below.
    """
    return max(1 / max(spread / total**2, harmonic), fewest - 1.0)


def _shares(table_rbad: Floats, outer_rpd: Floats, unit_share: float) -> Shares:
    """`unit_share` divided as the components are estimated, negative ones taken as zero."""
    outer, draw, both = (max(0.0, _component(outer_rpd, *axes)) for axes in ((1,), (2,), (1, 2)))
    adapter = outer
    if table_rbad.shape[1] > 1:
        adapter = min(outer, max(0.0, _component(table_rbad, 2, within=(1,))))
    parts = np.array([outer - adapter, adapter, draw, both])
    if parts.any():
        parts *= unit_share / parts.sum()
    of_backbone, of_adapter, of_draw, of_both = map(float, parts)
    return Shares(of_backbone, of_adapter, of_draw, of_both, rows=1 - float(parts.sum()))
