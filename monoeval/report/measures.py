"""Summary measures of every arm in one table, from the ledger and its predictions alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from monoeval.metrics.paired import paired_difference
from monoeval.metrics.scores import (
    ALEXNET_ERROR,
    StandardLine,
    balanced,
    effective_robustness,
    level_weights,
    mean_corruption_error,
)
from monoeval.report.layout import by_series
from monoeval.report.model import Column, Measure, Value
from monoeval.report.points import DETECTION, Point, target_of
from monoeval.report.scores import Sample, Scores
from monoeval.suite.units import whole

_KEPT = {"ece": "ECE", "ece_t": "ECE, scaled", "temperature": "temperature"}
"""Measures of `Row.measures` that are shown first, and their headings."""

PUBLISHED = "corruption/imagenet-c.official/"
"""Protocols of the files that AlexNet's errors were measured on; of other images an mCE means nothing."""

Part = tuple[Sample, float]
"""The correctness of an arm at one point, and the weight of its mean in a measure."""


def measures(scores: Scores, arms: Sequence[str], columns: Sequence[Column], primary: int) -> tuple[Measure, ...]:
    """The summary measures of a table with these `columns`; those that no arm has are left out.

    Areas are over the levels that are not set aside, level 0 among them; all else is of the points of the
    primary column. What is made of means of rows has its 95 % interval over test rows crossed with seeds. The
    worst class is the one that came out worst, so its accuracy lies below what that class would score on new rows,
    and has no interval; nor has what the ledger keeps one number a score of, averaged over scores here.
    """
    here = list(dict.fromkeys(p for column in columns if not column.set_aside for p in column.points))
    changed = columns[primary].points
    scenario = changed[0].scenario
    clean = [p for p in here if p.level == 0 and p not in changed]
    if scenario in {"few-shot", "imbalance"}:
        clean = [p for p in scores.points if p.scenario == "clean"][:1]
    found: dict[tuple[str, str], dict[str, Value | None]] = {}
    for arm in arms:
        if scenario in {"label-noise", "input-noise"}:
            lines = {name: line for name, line in by_series(here).items() if len({p.level for p in line}) > 1}
            for name, line in lines.items():
                label = f"area, {name}" if len(lines) > 1 else "area under the curve"
                weights = level_weights([p.level for p in line])
                area = _samples(scores, arm, dict(zip(line, weights, strict=True)))
                found.setdefault((f"area_{name}", label), {})[arm] = _combined(area)
        parts = _samples(scores, arm, dict.fromkeys(changed, 1 / len(changed)))
        if clean:
            weights_of = dict.fromkeys(changed, 1 / len(changed)) | dict.fromkeys(clean, 1 / len(clean))
            both = _samples(scores, arm, weights_of)
            after, before = both[: len(changed)], both[len(changed) :]
            found.setdefault(("relative_accuracy", "relative accuracy"), {})[arm] = _ratio(after, before)
            if scenario in {"ood", "subpopulation"}:
                gap = [*before, *((sample, -weight) for sample, weight in after)]
                found.setdefault(("gap", "gap to the source"), {})[arm] = _combined(gap)
        if scenario == "ood":
            for name, label, value in _robustness(scores, arm, changed, clean):
                found.setdefault((name, label), {})[arm] = value
        if scenario == "corruption" and (errors := _published_errors(changed, parts)):
            found.setdefault(("mce", "mCE"), {})[arm] = Value(mean_corruption_error(errors))
            if clean and len(both) > len(changed):
                alone = mean_corruption_error(errors, 1 - _mean(before))
                found.setdefault(("relative_mce", "relative mCE"), {})[arm] = Value(alone)
        if scenario == DETECTION:  # nothing there is right or wrong
            continue
        even = [(replace(sample, values=balanced(sample.values, sample.labels)), w) for sample, w in parts]
        found.setdefault(("balanced_accuracy", "balanced accuracy"), {})[arm] = _combined(even)
        found.setdefault(("worst_class", "worst class"), {})[arm] = _worst(parts)
    kept = {arm: scores.measures(arm, changed) for arm in arms}
    for name in dict.fromkeys([*_KEPT, *(name for of_arm in kept.values() for name in of_arm)]):
        label = _KEPT.get(name, name.replace("_", " "))
        found[name, label] = {arm: Value(of[name]) if name in of else None for arm, of in kept.items()}
    made = (
        Measure(name, label, {arm: value for arm, value in values.items() if value is not None})
        for (name, label), values in found.items()
    )
    return tuple(measure for measure in made if measure.values)


def _samples(scores: Scores, arm: str, weights: Mapping[Point, float]) -> list[Part]:
    """A sample of each point, all of the same seeds; empty where no seed has them all."""
    samples = [scores.sample(arm, [point], weigh=False) for point in weights]
    there = [sample for sample in samples if sample is not None]
    units = tuple(u for u in scores.units if all(u in sample.units for sample in there))
    if not units or len(there) < len(samples):
        return []
    units, levels = whole(units) if scores.crossed else (units, None)
    chosen = [
        replace(s, values=s.values[:, [s.units.index(u) for u in units]], units=units, levels=levels)
        if s.units != units
        else s
        for s in there
    ]
    return list(zip(chosen, weights.values(), strict=True))


def _mean(parts: Sequence[Part]) -> float:
    return float(sum(weight * sample.values.mean() for sample, weight in parts))


def _combined(parts: Sequence[Part], estimate: float | None = None) -> Value | None:
    """Σ weight · mean, or `estimate` where that sum is its linearisation, with the interval of the sum.

    Parts may be of unlike rows. Row i of R in all stands for estimate + Σ_p w_p ((x_ip − m_p) R/R_p + m_p − m̄_p)
    over the parts it is in, m_p the mean of a seed and m̄_p that of all seeds: its mean is the estimate, and rows
    spread as within their parts.
    """
    if not parts:
        return None
    ids = np.unique(np.concatenate([sample.ids for sample, _ in parts]))
    values = np.full((len(ids), len(parts[0][0].units)), _mean(parts) if estimate is None else estimate)
    groups = -1 - np.arange(len(ids))  # rows without one are their own
    for sample, weight in parts:
        level, place = sample.values.mean(0), np.searchsorted(ids, sample.ids)
        values += weight * (level - level.mean())
        values[place] += weight * len(ids) / len(sample.ids) * (sample.values - level)
        if sample.groups is not None:
            groups[place] = sample.groups
    found = paired_difference(values, groups if (groups >= 0).any() else None, levels=parts[0][0].levels)
    return Value(found.mean, found.low, found.high)


def _ratio(after: Sequence[Part], before: Sequence[Part]) -> Value | None:
    """The mean of `after` as a share of that of `before`; the derivatives of a/c are 1/c and −a/c²."""
    base = _mean(before)
    if not base:
        return None
    share = _mean(after) / base
    parts = [(sample, weight / base) for sample, weight in after]
    parts += [(sample, -share * weight / base) for sample, weight in before]
    return _combined(parts, share)


def _robustness(
    scores: Scores, arm: str, changed: Sequence[Point], clean: Sequence[Point]
) -> Iterator[tuple[str, str, Value | None]]:
    """Effective and relative robustness to each target with a line of standard models: name, label and value."""
    baseline = next(about.get("baseline") for about in scores.arms if about["name"] == arm)
    for point in changed:
        target = target_of(point)
        line, source = scores.standard.get(target), [p for p in clean if p.series == point.series]
        if line is None or not source:
            continue
        where = f", {target}" if len(changed) > 1 else ""
        both = _samples(scores, arm, {point: 1.0, source[0]: 1.0})
        effective = _beyond(both[:1], both[1:], line)
        yield f"effective_robustness_{target}", f"effective robustness{where}", effective
        gain = scores.sample(arm, [point], baseline) if baseline else None
        if gain is not None:
            relative = _combined([(gain, 1.0)])
            yield f"relative_robustness_{target}", f"relative robustness{where}", relative


def _beyond(after: Sequence[Part], before: Sequence[Part], line: StandardLine) -> Value | None:
    """The mean of `after` beyond what `line` has for that of `before`, whose σ(a·logit(c) + b) has the derivative
    a·σ(1 − σ)/(c(1 − c)); the line is taken as known."""
    clean = _mean(before)
    if not 0 < clean < 1:
        return None
    shifted = _mean(after)
    beyond = effective_robustness(shifted, clean, line.slope, line.intercept)
    expected = shifted - beyond
    slope = line.slope * expected * (1 - expected) / (clean * (1 - clean))
    return _combined([*after, *((sample, -slope * weight) for sample, weight in before)], beyond)


def _published_errors(points: Sequence[Point], parts: Sequence[Part]) -> dict[str, list[float]]:
    """Corruption → its five errors, where these are of all 15 in the published files of ImageNet-C; else empty."""
    errors: dict[str, dict[float, float]] = {}
    for point, (sample, _) in zip(points, parts, strict=False):  # an arm without all of the scores has no parts
        if not point.protocol.startswith(PUBLISHED):
            return {}
        if point.series in ALEXNET_ERROR:
            errors.setdefault(point.series, {})[point.level] = 1 - float(sample.values.mean())
    whole = set(errors) == set(ALEXNET_ERROR) and all(set(of) == {1, 2, 3, 4, 5} for of in errors.values())
    return {kind: [of[level] for level in sorted(of)] for kind, of in errors.items()} if whole else {}


def _worst(parts: Sequence[Part]) -> Value | None:
    """The smallest accuracy of a class, each averaged over seeds and over the points that have it."""
    found: dict[int, list[float]] = {}
    for sample, _ in parts:
        right = sample.values.mean(1)
        count, hits = np.bincount(sample.labels), np.bincount(sample.labels, weights=right)
        for label in np.flatnonzero(count):
            found.setdefault(int(label), []).append(hits[label] / count[label])
    return Value(min(float(np.mean(some)) for some in found.values())) if found else None
