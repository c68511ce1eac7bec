"""Which scores share a table, and what its columns are."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from monoeval.data.corruptions import EXTRAS
from monoeval.report.model import MEAN, Column, quantity
from monoeval.report.points import ARROW, DETECTION, Point


def divide(points: Sequence[Point]) -> list[tuple[str, list[Point]]]:
    """Title → points of each table: protocols that must not be averaged are kept apart."""
    tables: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points:
        tables[point.scenario, _family(point)].append(point)
    count = Counter(scenario for scenario, _ in tables)
    return [
        (scenario if count[scenario] == 1 else f"{scenario}: {family}", found)
        for (scenario, family), found in tables.items()
    ]


def _family(point: Point) -> str:
    """The protocol without its level; where the summary is a mean over series, without the series too."""
    if point.scenario == "subpopulation" or (point.scenario == "ood" and ARROW in point.series):
        return point.series
    if point.scenario == "ood":  # domains of one data set
        return point.protocol.split("/")[1]
    family = point.protocol.replace(f"@{point.level:g}", "")
    if point.scenario in {"corruption", "input-noise"}:
        family = family.replace(f"/{point.series}", "")
    return family.removeprefix(f"{point.scenario}/")


def slugs(titles: Sequence[str]) -> list[str]:
    """A distinct plain name for each title, for file names and anchors."""
    made = ["differences"]  # taken by the figure of that name
    for title in titles:
        plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "table"
        same = sum(re.fullmatch(rf"{plain}(--\d+)?", other) is not None for other in made)
        made.append(f"{plain}--{same + 1}" if same else plain)
    return made[1:]


def by_series(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points of each series in the order of their levels; series in the order they appear."""
    series: dict[str, list[Point]] = {point.series: [] for point in points}
    for point in sorted(points, key=lambda p: p.level):
        series[point.series].append(point)
    return series


def lines(points: Sequence[Point]) -> dict[str, dict[float, list[Point]]]:
    """Curves to draw: series → level → points; the mean over corruptions comes first where there are several."""
    made = {series: {p.level: [p] for p in some} for series, some in by_series(points).items()}
    if points[0].scenario != "corruption" or len(made) == 1:
        return made
    counted = [made[series] for series in by_series(_counted(points))]
    shared = [level for level in counted[0] if all(level in line for line in counted)]
    return {MEAN: {level: [p for line in counted for p in line[level]] for level in shared}, **made}


def _counted(points: Sequence[Point]) -> Sequence[Point]:
    """Those of corruptions that a mean is over: the extra ones count where no scored one is beside them."""
    return [point for point in points if point.series not in EXTRAS] or points


def columns(points: Sequence[Point], signal: Mapping[Point, float]) -> tuple[tuple[Column, ...], int, str]:
    """The columns of a table, which of them is the primary summary, and that summary in words."""
    scenario = points[0].scenario
    if scenario == "clean":
        return (Column("clean", tuple(points[:1])),), 0, "accuracy on clean data"
    if scenario == "subpopulation":
        names = {0.0: "trained subclasses", 1.0: "held-out subclasses"}
        made = [Column(names[p.level], (p,)) for p in sorted(points, key=lambda p: p.level)]
        return tuple(made), len(made) - 1, f"accuracy on {made[-1].label}"
    if scenario == "ood" and ARROW not in points[0].series:
        held_out = tuple(p for p in points if p.level)
        made = [Column("other domains", tuple(p for p in points if not p.level))]
        made += [Column(p.series, (p,)) for p in held_out]
        if len(held_out) == 1:
            return tuple(made), 1, f"accuracy on {held_out[0].series}, which was held out"
        mean = Column("mean", held_out)
        return (*made, mean), len(made), f"mean accuracy over {len(held_out)} held-out domains"
    if scenario == "ood":
        source, _, target = points[0].series.partition(ARROW)
        ordered = sorted(points, key=lambda p: p.level)
        made = [Column(f"{target} (target)" if p.level else f"{source} (source)", (p,)) for p in ordered]
        return tuple(made), len(made) - 1, f"accuracy on {target}"
    if scenario == DETECTION:
        made = [Column(_DETECTORS[p.series], (p,)) for p in points]
        return tuple(made), 0, f"AUROC by {made[0].label}"
    series = by_series(points)
    shares = scenario == "few-shot" and "share" in series
    if scenario in {"corruption", "input-noise"}:
        # Level 0 is the same clean test set in every series: shown once.
        made = [Column("clean", (p,)) for p in points if p.level == 0][:1]
        counted = set(_counted(points) if scenario == "corruption" else points)
        for name, some in series.items():
            changed = tuple(p for p in some if p.level)
            if scenario == "corruption":
                made.append(Column(name, changed, extra=counted.isdisjoint(changed)))
            else:
                made += [Column(f"{name} {p.level:g}", (p,)) for p in changed]
        primary = tuple(p for some in series.values() for p in some if p.level and p in counted)
    else:
        several = len(series) > 1
        made = [
            Column(f"{name} {p.level:g}" if several else f"{p.level:g}", (p,), signal.get(p, 1.0) <= 0)
            for name, some in series.items()
            for p in some
        ]
        rest = [p for column in made if not column.negative_control for p in column.points]
        # what changes nothing is no part of a summary of the change
        unchanged = 1 if scenario == "imbalance" or shares else 0
        primary = tuple(p for p in rest if p.level != unchanged) or tuple(rest)
    made = [column for column in made if column.points]
    if len(primary) == 1:
        place = next(i for i, column in enumerate(made) if column.points == primary)
        return tuple(made), place, f"{quantity(scenario)} at {made[place].label}"
    levels = "shares of the rows" if shares else _LEVELS.get(scenario, "levels")
    words = f"mean {quantity(scenario)} over {len(primary)} {levels}"
    if any(column.negative_control for column in made):
        words += " with label signal"
    if any(column.extra for column in made):
        words += ", without the extra ones"
    return (*made, Column("mean", primary)), len(made), words


_DETECTORS = {"max_softmax": "max-softmax", "energy": "energy", "neighbour_distance": "neighbours"}
_LEVELS = {
    "imbalance": "ratios of class sizes",
    "label-noise": "noise rates",
    "few-shot": "numbers of shots",
    "input-noise": "noise levels",
    "corruption": "corruptions × severities",
}
