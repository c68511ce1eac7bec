"""The units of a study: which backbone, adapter and draw belong together."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from monoeval.metrics.components import Levels


class Unit(NamedTuple):
    """The seeds of one repetition of a study."""

    backbone: int
    adapter: int
    draw: int


def units_of(seeds: int | Sequence[int] | Mapping[str, int]) -> tuple[Unit, ...]:
    """Units of a recipe's `seeds`: all three move together, or are crossed where a count is given for each."""
    if isinstance(seeds, Mapping):
        levels = Levels(**seeds)
        return tuple(
            Unit(*u) for u in product(range(levels.backbones), range(levels.adapters), range(levels.draws))
        )
    return tuple(Unit(seed, seed, seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds))


def whole(units: Iterable[Unit]) -> tuple[tuple[Unit, ...], Levels]:
    """The crossed design within `units` that is left once levels with the most units missing are taken out.

    Empty only where `units` is: an axis keeps its last level, and another then has one that misses as much.
    """
    there = set(units)
    axes = [sorted(set(axis)) for axis in zip(*there, strict=True)] or [[], [], []]
    while missing := [unit for unit in product(*axes) if unit not in there]:
        _, axis, worst = max(
            (sum(unit[axis] == level for unit in missing) * len(axes[axis]), axis, level)
            for axis in range(3)
            if len(axes[axis]) > 1
            for level in axes[axis]
        )
        axes[axis].remove(worst)
    return tuple(Unit(*unit) for unit in product(*axes)), Levels(*map(len, axes))


def one_adapter_each(units: Sequence[Unit]) -> tuple[tuple[Unit, ...], Levels]:
    """The part of a crossed design in which each backbone has an adapter seed of its own.

    For adapters that are crossed with backbones rather than of them: what these add to a variance does not show
    where every backbone meets the same ones. The two then move together, as one level.
    """
    backbones, adapters, draws = (sorted(set(axis)) for axis in zip(*units, strict=True))
    pairs = list(zip(backbones, adapters, strict=False))
    return tuple(Unit(*pair, draw) for pair in pairs for draw in draws), Levels(len(pairs), 1, len(draws))
