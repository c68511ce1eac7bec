"""What a row of the ledger is a score of: its condition, its seeds, and what was measured beside it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monoeval.data.corruptions import DRAWN
from monoeval.metrics.detection import SCORES
from monoeval.suite.ledger import Row
from monoeval.suite.units import Unit

DETECTION = "ood-detection"
"""The scenario whose tables hold areas under the curve, not accuracies."""

ARROW = " → "
"""Between the source and the target in the series of ood; one that is a domain held out has none."""


class Point(NamedTuple):
    """One condition that arms are scored under. Unlike protocols are unlike points."""

    scenario: str
    protocol: str
    series: str
    level: float


def target_of(point: Point) -> str:
    """The target of a score of ood: a domain held out, or the name of another data set."""
    return point.series.rpartition(ARROW)[2]


def points_of(row: Row) -> list[Point]:
    """The conditions whose tables a row is shown in: of rows from elsewhere, one a score of theirs."""
    if row.scenario != DETECTION:
        return [point_of(row)]
    # the rows of the data are read beside those of elsewhere, and shown as clean accuracy
    return [Point(DETECTION, row.protocol, name, row.level) for name in SCORES] if row.level else []


def point_of(row: Row) -> Point:
    """The condition a row was scored under."""
    return Point(row.scenario, row.protocol, row.series, row.level)


SEEDS = ("backbone", "adapter", "draw")
FINETUNING = "finetuning"
"""What the adapter's seed is called where backbones are finetuned."""


def seeds_of(row: Row) -> tuple[int | None, int | None, int | None]:
    """What a row was drawn with, in the order of `SEEDS`; None where nothing was drawn."""
    return row.backbone_seed, row.adapter_seed, row.draw


def varied(rows: Sequence[Row]) -> tuple[str, ...]:
    """What an arm of `rows` has several of, of `SEEDS`; a finetuning is in place of the adapter."""
    return tuple(name for name, count in _counts(rows).items() if count > 1)


def fixed(rows: Sequence[Row]) -> tuple[str, ...]:
    """What `rows` have one of, of `SEEDS`, for all units."""
    return tuple(name for name, count in _counts(rows).items() if count == 1)


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many backbones, adapters and draws an arm of `rows` has; adapters of two backbones are two."""
    found: dict[str, dict[str, set[object]]] = {name: defaultdict(set) for name in SEEDS}
    for row in rows:
        for name, seed in zip(SEEDS, seeds_of(row), strict=True):
            if seed is not None:
                found[name][row.arm].add((row.backbone_seed, seed) if name == "adapter" else seed)
    trained = all(row.probe_kind == "finetune" for row in rows)
    return {
        FINETUNING if trained and name == "adapter" else name: max(map(len, of_arm.values()), default=0)
        for name, of_arm in found.items()
    }


def adapters_across_backbones(rows: Sequence[Row]) -> bool:
    """Whether several adapters (or finetunings) of a given backbone stand against several pretrained backbones."""
    given = {r.adapter_seed for r in rows if r.backbone_seed is None and r.adapter_seed is not None}
    return len(given) > 1 and len({r.backbone_seed for r in rows if r.backbone_seed is not None}) > 1


def drawn_once(points: Sequence[Point]) -> str:
    """What of the test images at `points` is drawn, but once for every arm and seed; empty where nothing is."""
    for point in points:
        if not point.level:
            continue
        if point.scenario == "input-noise":
            return "the noise on test images"
        if point.scenario == "corruption" and "onthefly/" in point.protocol and point.series in DRAWN:
            return "the corruption of test images"
    return ""


def applies(row: Row, unit: Unit) -> bool:
    """A row belongs to a study unit where each of its seeds is null (nothing was drawn) or the unit's."""
    return all(seed in (None, own) for seed, own in zip(seeds_of(row), unit, strict=True))


def reason(row: Row) -> str:
    """Why a row has no result."""
    words = {"failed": "failed", "nan": "not a number", "empty": "no test row"}[row.status]
    return f"{words}: {row.error}" if row.error else words


def mean_measures(rows: Sequence[Row]) -> dict[str, float]:
    """Adapter measures averaged over the adapters that were used (each counted once), and drift over scores."""
    fitted: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.adapter:
            fitted[row.train, row.backbone_seed, row.adapter_seed, *sorted(row.chosen.items())] |= row.adapter
    moved = [
        {f"drift_{name}": value for name, value in {**row.drift, **_shifts(row.drift)}.items()}
        for row in rows
        if row.drift
    ]
    return {**means(fitted.values()), **means(moved)}


def _shifts(drift: Mapping[str, float]) -> dict[str, float]:
    """What a change to the images adds to L0 and explained variance, where both figures are there."""
    return {
        f"{name}_shift": drift[f"{name}_corrupted"] - drift[f"{name}_clean"]
        for name in ("l0", "explained")
        if f"{name}_corrupted" in drift and f"{name}_clean" in drift
    }


def means(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over those of `found` that have it."""
    values: dict[str, list[float]] = defaultdict(list)
    for measures in found:
        for name, value in measures.items():
            values[name].append(value)
    return {name: float(np.mean(some)) for name, some in values.items()}
