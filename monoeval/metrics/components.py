"""How sure a mean over test rows, backbones, adapters and draws is, and whose doing the uncertainty is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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
    """With its adapter's, where each backbone has but one."""
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
        return _two_way(_parts(delta_ru), delta_ru.shape)
    table_rbad = delta_ru.reshape(len(delta_ru), levels.backbones, levels.adapters, levels.draws)
    for axis in (1, 2, 3):
        first = table_rbad.take([0], axis)
        table_rbad = first if np.abs(table_rbad - first).max() <= 1e-12 else table_rbad
    outer_rpd = table_rbad[:, 0] if table_rbad.shape[1] == 1 else table_rbad.mean(2)
    part = _parts(outer_rpd)
    found = _two_way(part, outer_rpd.shape, 2 if outer_rpd.shape[1] == 1 else 1)
    if 1 not in outer_rpd.shape:
        found = _three_way(part, outer_rpd.shape)
    shares = _shares(table_rbad, part, outer_rpd.shape, found.unit_share)
    return Variance(found.value, found.degrees_of_freedom, found.unit_share, shares)


Part = Callable[[tuple[int, ...]], float]
"""Axes → the mean square of their effect, divided by the number of cells.

Its expectation is the sum of σ²_T / n_T over all components T that have these axes among theirs, n_T the number of
their levels in the table: what they add to the variance of the mean.
"""


def _parts(table: Floats, within: tuple[int, ...] = ()) -> Part:
    """The parts of `table`, each computed once; effects are nested in the axes `within`."""

    @cache
    def part(axes: tuple[int, ...]) -> float:
        others = tuple(axis for axis in range(table.ndim) if axis not in (*axes, *within))
        effect: Floats = table.mean(others, keepdims=True)
        for axis in axes:
            effect = effect - effect.mean(axis, keepdims=True)
        freedom = prod([table.shape[axis] - 1 for axis in axes] + [table.shape[axis] for axis in within])
        return float((effect**2).sum() / (freedom * effect.size))

    return part


def _component(part: Part, shape: tuple[int, ...], axes: tuple[int, ...], others: tuple[int, ...]) -> float:
    """What `axes` alone add to the variance of the mean, without what they and `others` add together, or zero."""
    if any(shape[axis] == 1 for axis in axes):
        return 0.0
    others = tuple(axis for axis in others if shape[axis] > 1)
    more = [some for n in range(len(others) + 1) for some in combinations(others, n)]
    return max(0.0, sum((-1.0) ** len(some) * part(tuple(sorted(axes + some))) for some in more))


def _two_way(part: Part, shape: tuple[int, ...], axis: int = 1) -> Variance:
    """Rows × the units along `axis`, averaged over any other: V = rows + units − rows×units.

    Where V falls below the part of rows or of units, a component's estimate is negative; it is taken as zero,
    which leaves the larger of these two.
    """
    rows, units = shape[0], shape[axis]
    of_rows = part((0,))
    if units == 1:
        return Variance(of_rows, rows - 1.0, 0.0)
    of_units, of_both = part((axis,)), part((0, axis))
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


def _three_way(part: Part, shape: tuple[int, ...]) -> Variance:
    """Rows × P × draws: V = R + P + D − RP − RD − PD + RPD.

    Where the component of P or of draws is estimated as negative it is taken as zero, which leaves the two-way V
    after averaging over it: V is never less than either of the two.
    """
    rows, of_p, of_d = shape
    parts = {axes: part(axes) for n in (1, 2, 3) for axes in combinations(range(3), n)}
    total = sum((-1.0) ** (len(axes) + 1) * value for axes, value in parts.items())
    without = max((_two_way(part, shape, axis) for axis in (1, 2)), key=lambda found: found.value)
    if total <= without.value * (1 + 1e-9):
        return without
    spread = sum(value**2 / prod(shape[axis] - 1 for axis in axes) for axes, value in parts.items())
    p, d, both = (share / total for share in _outer(part, shape))
    rest = max(0.0, 1 - p - d - both)
    harmonic = p / (of_p - 1) + d / (of_d - 1) + both / ((of_p - 1) * (of_d - 1)) + rest / (rows - 1)
    freedom = _degrees_of_freedom(total, spread, harmonic, min(shape))
    return Variance(total, freedom, max(0.0, 1 - parts[0,] / total))


def _outer(part: Part, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """The components of P, of draws, and of both together."""
    return (
        _component(part, shape, (1,), (0, 2)),
        _component(part, shape, (2,), (0, 1)),
        _component(part, shape, (1, 2), (0,)),
    )


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


def _shares(table_rbad: Floats, part: Part, shape: tuple[int, ...], unit_share: float) -> Shares:
    """`unit_share` divided as the components are estimated."""
    outer, draw, both = _outer(part, shape)
    adapter = outer
    if table_rbad.shape[1] > 1:
        nested = _parts(table_rbad, within=(1,))
        adapter = min(outer, _component(nested, table_rbad.shape, (2,), (0, 3)))
    parts = np.array([outer - adapter, adapter, draw, both])
    if parts.any():
        parts *= unit_share / parts.sum()
    of_backbone, of_adapter, of_draw, of_both = map(float, parts)
    return Shares(of_backbone, of_adapter, of_draw, of_both, rows=1 - float(parts.sum()))
