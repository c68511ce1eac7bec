"""Whether the intervals hold the truth as often as they say, by simulated studies.

Run with `uv run python tests/studies/coverage.py [--quick] [--only PART] [--json FILE]`. A study is a table of
test rows × seeds, or × backbones, their adapters and draws. Seeds add a component that is zero, small, as large
as that of rows, or dominant in the error of the mean. Tables are Gaussian, or differences in {−1, 0, 1} of two
arms whose latent scores share the rows' difficulty (a probit model, so the true accuracies are known in closed
form); rows are alone, or in clusters of unequal sizes.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import ndtri

from monoeval.metrics.components import Levels
from monoeval.metrics.error_rates import accuracy_interval, relative_error_reduction
from monoeval.metrics.paired import paired_difference, verdict

Floats = NDArray[np.float64]
SEEDS = (3, 5, 10)
PARTS = ("differences", "crossed", "accuracies", "reductions", "equivalence", "beyond")
COMPONENTS = {"none": 0.0, "small": 0.3, "equal": 1.0, "dominant": 5.0}
"""The seeds' part of the standard error of a mean as a multiple of the rows' part."""
SHAPES = {
    "50 rows": (50, 0),
    "450 rows": (450, 0),
    "450 rows, 45 clusters": (450, 45),
    "450 rows, 12 clusters": (450, 12),
    "640 rows, 5 clusters": (640, 5),  # the digits' test set, by five writers
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 studies a cell instead of 2,000")
    parser.add_argument("--only", choices=PARTS, help="one of the tables")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    studies = 200 if asked.quick else 2000
    console, found = Console(width=115), {}
    for name in [asked.only] if asked.only else PARTS:
        part = globals()[name]
        found[name] = lines = list(part(studies))
        table = Table(*lines[0], title=str(part.__doc__).splitlines()[0])
        for line in lines:
            table.add_row(*(f"{v:.1f}" if isinstance(v, float) else str(v) for v in line.values()))
        console.print(table)
    if asked.json:
        asked.json.write_text(json.dumps({"studies": studies, **found}, indent=1))


def differences(studies: int) -> Iterator[dict[str, Any]]:
    """Paired differences: coverage of 95 % intervals, %."""
    for shape, model in product(SHAPES, ("Gaussian", "binary")):
        for seeds in SEEDS:
            line: dict[str, Any] = {"test rows": shape, "values": model, "seeds": seeds}
            for name, component in COMPONENTS.items():
                rng = np.random.default_rng(0)
                held = 0
                for _ in range(studies):
                    groups = clusters(rng, shape)
                    if model == "Gaussian":
                        delta, truth = gaussian(rng, shape, seeds, component, groups), 0.0
                    else:
                        one, other = latent(rng, shape, seeds, component, groups)
                        delta, truth = one(0.9) - other(0.85), 0.05
                    interval = paired_difference(delta, groups)
                    held += interval.low <= truth <= interval.high
                line[name] = 100 * held / studies
            yield line


def clusters(rng: np.random.Generator, shape: str) -> NDArray[np.int64] | None:
    """A cluster for each row, of sizes that vary about twofold; None for rows that stand alone."""
    rows, count = SHAPES[shape]
    share = rng.uniform(0.5, 1.5, count) if count else np.ones(1)
    return rng.choice(count, rows, p=share / share.sum()) if count else None


def gaussian(
    rng: np.random.Generator, shape: str, seeds: int, component: float, groups: NDArray[np.int64] | None
) -> Floats:
    """Differences [R, U] with mean 0: rows and residual of standard deviation 0.3, and the seeds' component."""
    rows, count = SHAPES[shape]
    seed = 0.3 * component * np.sqrt(seeds / (count or rows))
    row = effects(rng, rows, count, groups)
    table: Floats = 0.3 * row + seed * rng.normal(size=seeds) + 0.3 * rng.normal(size=(rows, seeds))
    return table


def effects(rng: np.random.Generator, rows: int, count: int, groups: NDArray[np.int64] | None) -> Floats:
    """Standard normal effects of rows [R, 1]; half of their variance is the cluster's."""
    alone = rng.normal(size=(rows, 1))
    return alone if groups is None else (alone + rng.normal(size=(count, 1))[groups]) / np.sqrt(2)


def latent(
    rng: np.random.Generator, shape: str, seeds: int, component: float, groups: NDArray[np.int64] | None
) -> tuple[Callable[[float], Floats], Callable[[float], Floats]]:
    """Two arms on the same rows: accuracy in the population → correctness [R, U].

    A row is right where difficulty + seed effect + residual (0.5) stays under a threshold. The seed's standard
    deviation makes its part of the error about `component` times the part of rows and residual.
    """
    rows, count = SHAPES[shape]
    row = effects(rng, rows, count, groups)
    seed = 0.7 * component * np.sqrt(seeds / (count or rows))
    scale = np.sqrt(1 + seed**2 + 0.25)

    def arm() -> Callable[[float], Floats]:
        score = row + seed * rng.normal(size=seeds) + 0.5 * rng.normal(size=(rows, seeds))
        return lambda accuracy: (score < scale * ndtri(accuracy)).astype(np.float64)

    return arm(), arm()


DESIGNS = (Levels(3, 2, 2), Levels(5, 2, 2), Levels(3, 2, 3), Levels(5, 2, 5))
MIXTURES: dict[str, dict[str, float]] = {
    "none": {},
    "small": {"backbone": 0.3, "adapter": 0.3, "draw": 0.3},
    "equal": {"backbone": 1, "adapter": 1, "draw": 1},
    "backbone": {"backbone": 5},
    "adapter": {"adapter": 5},
    "draw": {"draw": 5},
    "draw equal": {"draw": 1},
    "both": {"backbone": 5, "draw": 5},
    "interplay": {"backbone": 2, "draw": 2, "interplay": 2},
}
"""Parts of the standard error of a mean as multiples of the rows' part."""


def crossed(studies: int) -> Iterator[dict[str, Any]]:
    """Crossed backbones, adapters and draws: coverage of 95 % intervals, %."""
    for rows, levels, mixture in product((50, 450), DESIGNS, MIXTURES):
        rng = np.random.default_rng(0)
        held = dict.fromkeys(("crossed", "draws averaged", "units of one factor"), 0)
        halves = []
        for _ in range(studies):
            table = crossed_table(rng, rows, levels, MIXTURES[mixture])
            of_all = paired_difference(table, levels=levels)
            of_backbones = paired_difference(table.reshape(rows, levels.backbones, -1).mean(2))
            for name, found in zip(held, (of_all, of_backbones, paired_difference(table)), strict=True):
                held[name] += found.low <= 0 <= found.high
            halves.append(of_all.high - of_all.mean)
        true = (
            0.3 / np.sqrt(rows) * np.sqrt(1 + 1 / table.shape[1] + sum(c**2 for c in MIXTURES[mixture].values()))
        )
        line: dict[str, Any] = {"test rows": rows, "design": str(levels), "components": mixture}
        line |= {name: 100 * count / studies for name, count in held.items()}
        yield line | {"median half-width / standard error": float(np.median(halves) / true)}


def crossed_table(rng: np.random.Generator, rows: int, levels: Levels, components: dict[str, float]) -> Floats:
    """Gaussian differences [R, U] with mean 0; rows and residual have standard deviation 0.3."""
    b, a, d = levels.backbones, levels.adapters, levels.draws
    shapes = {"backbone": (1, b, 1, 1), "adapter": (1, b, a, 1), "draw": (1, 1, 1, d), "interplay": (1, b, 1, d)}
    table = 0.3 * rng.normal(size=(rows, 1, 1, 1)) + 0.3 * rng.normal(size=(rows, b, a, d))
    for name, component in components.items():
        effect = rng.normal(size=shapes[name])
        table += 0.3 * component * np.sqrt(effect.size / rows) * effect
    return table.reshape(rows, -1)


def accuracies(studies: int) -> Iterator[dict[str, Any]]:
    """Accuracy of one arm: coverage of 95 % intervals, %."""
    for shape, seeds, accuracy in product(("50 rows", "450 rows"), (1, *SEEDS), (0.7, 0.9, 0.98, 0.995)):
        line: dict[str, Any] = {"test rows": shape, "seeds": seeds, "true accuracy, %": 100 * accuracy}
        for name, component in COMPONENTS.items():
            if seeds == 1 and component:
                line[name] = ""
                continue
            rng = np.random.default_rng(0)
            held = 0
            for _ in range(studies):
                interval = accuracy_interval(latent(rng, shape, seeds, component, None)[0](accuracy))
                held += interval.low <= accuracy <= interval.high
            line[name] = 100 * held / studies
        yield line


def reductions(studies: int) -> Iterator[dict[str, Any]]:
    """Relative error reduction: coverage of 95 % intervals, %, where there is one."""
    studies //= 4  # each takes some thirty intervals
    for shape, seeds in product(("50 rows", "450 rows"), (1, *SEEDS)):
        line: dict[str, Any] = {"test rows": shape, "seeds": seeds}
        for name, component in COMPONENTS.items():
            if seeds == 1 and component:
                line[name] = line[f"none for ({name})"] = ""
                continue
            rng = np.random.default_rng(0)
            held = []
            for _ in range(studies):
                one, other = latent(rng, shape, seeds, component, None)
                base = other(0.8)
                ratio = relative_error_reduction(one(0.85) - base, 1 - base)
                if ratio is not None:
                    held.append(ratio.low <= 0.25 <= ratio.high)
            line[name] = 100 * float(np.mean(held))
            line[f"none for ({name})"] = f"{100 * (1 - len(held) / studies):.0f}"
        yield line


def equivalence(studies: int) -> Iterator[dict[str, Any]]:
    """Called equivalent within 1 point, %: at a true difference of 1 point (at most 5 is right), and of 0."""
    for rows, seeds in product((450, 2000), SEEDS):
        for truth in (0.01, 0.0):
            line: dict[str, Any] = {"test rows": rows, "seeds": seeds, "true difference, points": 100 * truth}
            for name, component in COMPONENTS.items():
                rng = np.random.default_rng(0)
                seed = 0.08 * component * np.sqrt(seeds / rows)
                called = 0
                for _ in range(studies):
                    noise = rng.normal(size=(rows, 1)) + rng.normal(size=(rows, seeds))
                    delta = truth + 0.08 * noise + seed * rng.normal(size=seeds)
                    called += paired_difference(delta).within(0.01)
                line[name] = 100 * called / studies
            yield line


def beyond(studies: int) -> Iterator[dict[str, Any]]:
    """Called "beyond the controls", %: where it is no better than one of the others (at most 2.5 is right)."""
    truths = {
        "level with the baseline": (0.0, 0.05, 0.05),
        "level with one control": (0.05, 0.0, 0.05),
        "level with all": (0.0, 0.0, 0.0),
        "3 points over all": (0.03, 0.03, 0.03),
    }
    for seeds, (what, gains) in product(SEEDS, truths.items()):
        line: dict[str, Any] = {"truth": what, "seeds": seeds}
        for name, component in COMPONENTS.items():
            rng = np.random.default_rng(0)
            called = 0
            for _ in range(studies):
                seed = 0.15 * component * np.sqrt(seeds / 450)
                # the arm's own rows and seeds are in all of its differences
                own = rng.normal(size=(450, 1)) + rng.normal(size=(450, seeds))
                own = 0.15 / np.sqrt(2) * own + seed / np.sqrt(2) * rng.normal(size=seeds)
                found = []
                for gain in gains:
                    other = rng.normal(size=(450, 1)) + rng.normal(size=(450, seeds))
                    other = 0.15 / np.sqrt(2) * other + seed / np.sqrt(2) * rng.normal(size=seeds)
                    found.append(paired_difference(gain + own - other))
                judged = verdict(found[0], {"one": found[1], "other": found[2]})
                called += judged.kind == "beyond the controls"
            line[name] = 100 * called / studies
        yield line


if __name__ == "__main__":
    main()
