"""Tables filled with numbers: accuracies, paired differences and verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monoeval.adapters.learned import not_trained
from monoeval.metrics.components import Levels
from monoeval.metrics.error_rates import accuracy_interval, relative_error_reduction
from monoeval.metrics.paired import paired_difference, verdict
from monoeval.report.layout import columns, lines
from monoeval.report.measures import measures
from monoeval.report.model import Cell, Column, Comparison, Curve, Difference, Table
from monoeval.report.points import Point, drawn_once, points_of
from monoeval.report.scores import Scores
from monoeval.report.wording import COUNTED, listed, signed, uncertain


def fill(scores: Scores, title: str, slug: str, points: Sequence[Point]) -> Table:
    """The table of `points`, for every arm that has a score there or in no other table of the scenario."""
    scenario, here = points[0].scenario, set(points)
    rows = [row for row in scores.rows if row.scenario == scenario]
    inside = {row.arm for row in rows if here & {*points_of(row)}}
    outside = {row.arm for row in rows} - inside
    arms = [arm for arm in scores.arms if arm["name"] not in outside]
    # one that the family names is judged itself, too
    claimed = {claim["arm"] for claim in scores.recipe.get("family") or ()}
    held_against = {name for arm in scores.arms for name in arm.get("controls") or ()} - claimed
    made, primary, label = columns(points, scores.label_signal)
    return Table(
        scenario=scenario,
        title=title,
        slug=slug,
        columns=made,
        primary=primary,
        primary_label=label,
        cells={arm["name"]: tuple(_accuracy(scores, arm["name"], c.points) for c in made) for arm in arms},
        comparisons=tuple(
            _comparison(scores, arm, made, primary, is_control=arm["name"] in held_against)
            for arm in arms
            if arm.get("baseline")
        ),
        curves=tuple(
            Curve(
                arm["name"], series, tuple(line), tuple(_accuracy(scores, arm["name"], p) for p in line.values())
            )
            for series, line in lines(points).items()
            for arm in arms
        ),
        protocols=tuple(dict.fromkeys(p.protocol for p in points)),
        measures=measures(scores, [arm["name"] for arm in arms], made, primary),
        rows=max((row.rows for row in rows if here & {*points_of(row)}), default=0),
    )


def _accuracy(scores: Scores, arm: str, points: Sequence[Point]) -> Cell:
    """Accuracy of an arm averaged over `points`; n/a where one of them has no score at all."""
    reasons = []
    for point in points:
        gaps = scores.gaps(arm, point)
        where = f"{point.series} {point.level:g} " if len(points) > 1 else ""
        for reason in dict.fromkeys(gaps.values()):
            units = [unit for unit, other in gaps.items() if other == reason]
            seeds = f"{scores.named(units)} " if len(units) < len(scores.units) else ""
            reasons.append(f"{where}{seeds}{reason}")
    if any(not scores.units_of(arm, point) for point in points):
        return Cell(None, tuple(reasons))
    sample = scores.sample(arm, points)
    if sample is None:
        return Cell(None, (*reasons, "no seed has all of these levels"))
    return Cell(
        accuracy_interval(sample.values, sample.groups, levels=sample.levels), tuple(reasons) or sample.remarks
    )


def _difference(scores: Scores, arm: str, against: str, columns: Sequence[Column], primary: int) -> Difference:
    """`arm` minus `against` in each column, over the levels that both have."""
    cells = []
    varied: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    conditional, units, levels, fewer_errors = False, 0, None, None
    for place, column in enumerate(columns):
        shared = _shared(scores, arm, against, column.points)
        sample = scores.sample(arm, shared, against)
        if sample is None:
            cells.append(Cell(None, ("no score in common",)))
            continue
        remarks = sample.remarks
        if unlike := _unlike(scores.probe(arm), scores.probe(against)):
            remarks = (f"{unlike}: a difference of probes, not of codes alone", *remarks)
        if len(shared) < len(column.points):
            lost = ", ".join(f"{p.series} {p.level:g}" for p in column.points if p not in shared)
            remarks = (f"on {len(shared)} of {len(column.points)} levels, without {lost}", *remarks)
        cells.append(Cell(paired_difference(sample.values, sample.groups, levels=sample.levels), remarks))
        if place == primary:
            varied, units, levels, fixed = sample.varied, len(sample.units), sample.levels, sample.fixed
            conditional = sample.conditional or (levels is not None and "backbone" in fixed)
            if sample.wrong is not None:
                fewer_errors = relative_error_reduction(
                    sample.values, sample.wrong, sample.groups, levels=sample.levels
                )
    return Difference(
        against, tuple(cells), cells[primary], varied, conditional, units, fewer_errors, levels=levels, fixed=fixed
    )


_FEW = "95 % intervals may hold as little as 87 %, so run three or more"
_COMPARED = {"finetune": ("objective", "adapt")}
"""Settings of a probe that arms are compared for, by its kind; all others must be alike."""


def _unlike(probe: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """How two probes differ; empty where they do not."""
    if probe["kind"] != other["kind"]:
        return f"{probe['kind']} and {other['kind']} probes"
    compared = _COMPARED.get(probe["kind"], ())
    settings = [n for n in {**probe, **other} if n not in compared and probe.get(n) != other.get(n)]
    return f"{probe['kind']} probes with unlike {', '.join(settings)}" if settings else ""


def _shared(scores: Scores, arm: str, against: str, points: Sequence[Point]) -> list[Point]:
    """The levels to compare on: a difference needs the same seeds at each, so one of them may have to give way."""
    units = {p: scores.units_of(arm, p, against) for p in points}
    every = {unit for found in units.values() for unit in found}
    levels = [p for p in points if units[p]]
    whole = [p for p in levels if every == set(units[p])]
    seeds = [unit for unit in every if all(unit in units[p] for p in levels)]
    return whole if len(whole) * len(every) > len(levels) * len(seeds) else levels


def _comparison(
    scores: Scores, arm: Mapping[str, Any], columns: Sequence[Column], primary: int, *, is_control: bool
) -> Comparison:
    name, baseline = str(arm["name"]), str(arm["baseline"])
    gain = _difference(scores, name, baseline, columns, primary)
    controls = tuple(_difference(scores, name, str(c), columns, primary) for c in arm.get("controls") or ())
    scored = [d for d in (gain, *controls) if d.primary.interval is not None]
    notes = []
    for remark in dict.fromkeys(remark for d in scored for remark in d.primary.remarks):
        concerned = [d.against for d in scored if remark in d.primary.remarks]
        notes.append(remark if len(concerned) == len(scored) else f"against {', '.join(concerned)}: {remark}")
    backbones = {other["name"]: other.get("backbone") for other in scores.arms}
    pretraining = [d for d in (gain, *controls) if backbones.get(d.against) != backbones[name]]
    one_pair = any(d.conditional or d.units == 1 for d in pretraining)
    if one_pair:
        notes.append("conditional on one backbone pair")
    elif gain.conditional:
        notes.append("conditional on one backbone")
    if gain.levels is not None:
        notes += _of_levels(gain, gain.levels, columns[primary].points)
    elif gain.units == 1:
        notes.append("one seed: test rows only")
    elif gain.units == 2 and gain.varied:
        notes.append(f"two seeds: {_FEW}")
    elif gain.units and not gain.varied:
        notes.append(_nothing_varied(columns[primary].points))
    unlike = any(_unlike(scores.probe(name), scores.probe(d.against)) for d in (gain, *controls))
    comparable = not (unlike or one_pair)
    if is_control:
        kind, sentence = "control", ""
    elif unlike:
        kind, sentence = "no verdict", "Arms of unlike probes are not judged against each other."
    elif one_pair:
        why = "One backbone of each kind was compared: that says nothing about how they were pretrained."
        kind, sentence = "no verdict", why
    else:
        kind, sentence = _judge(scores, name, gain, controls)
    return Comparison(name, gain, controls, kind, sentence, comparable, notes=tuple(dict.fromkeys(notes)))


def _nothing_varied(points: Sequence[Point]) -> str:
    """That no seed draws anything at `points`, and what is drawn all the same."""
    once = drawn_once(points)
    what = f"{once} is one draw, shared by all arms and seeds" if once else "nothing is drawn"
    return f"{what}: test rows only"


def _of_levels(gain: Difference, levels: Levels, points: Sequence[Point]) -> list[str]:
    """What a crossed study qualifies a verdict by, and whose doing its uncertainty is."""
    if not gain.varied and not gain.fixed:
        return [_nothing_varied(points)]
    notes = [f"conditional on one {name}" for name in gain.fixed if name != "backbone"]
    averaged = {"adapters"} if "backbone" in gain.varied else set()  # over those of each backbone
    outer = [name for name in gain.varied if COUNTED[name] not in averaged]
    if few := [f"two {name}s" for name in outer if getattr(levels, COUNTED[name]) == 2]:
        notes.append(f"{listed(few)}: {_FEW}")
    interval = gain.primary.interval
    if interval is not None and interval.shares is not None and gain.varied:
        notes.append(uncertain(interval.shares, gain.varied, levels))
    return notes


def _judge(scores: Scores, arm: str, gain: Difference, controls: Sequence[Difference]) -> tuple[str, str]:
    """The verdict, or why there is none."""
    none = "no verdict"
    if gain.primary.interval is None or any(d.primary.interval is None for d in controls):
        missing = [d.against for d in (gain, *controls) if d.primary.interval is None]
        return none, f"There is no score in common with {', '.join(missing)}."
    if why := not_trained(scores.adapter_measures(arm)):
        return none, f"Adapter not trained: {why}."
    held = {d.against: d.primary.interval for d in controls if d.primary.interval is not None}
    judged = verdict(gain.primary.interval, held, scores.margin)
    if judged.kind == "beyond the controls":
        was_there, cause = _cause(scores, arm, list(held))
        return judged.kind if was_there else "manipulation failed", f"{judged.sentence} {cause}"
    return judged.kind, judged.sentence


def _cause(scores: Scores, arm: str, controls: Sequence[str]) -> tuple[bool, str]:
    """Whether what is claimed to help was there: latents more monosemantic than those of every control.

    True where it was not measured: then nothing is claimed of a cause.
    """
    own = scores.monosemanticity(arm)
    more: dict[str, list[float]] = {}
    for name in controls:
        of_control = scores.monosemanticity(name)
        more[name] = [own[unit] - of_control[unit] for unit in own if unit in of_control]
    if not all(more.values()):
        return True, "Monosemanticity was not measured, so this speaks of the adapter, not of its cause."
    name, least = min(more.items(), key=lambda item: float(np.mean(item[1])))
    figure = f"top-20 consistency is {signed(float(np.mean(least)))} points against {name}, after chance"
    if all(value > 0 for found in more.values() for value in found):
        seeds = "In every seed its" if len(least) > 1 else "Its"
        return True, f"{seeds} latents are more monosemantic than every control's: {figure}."
    if np.mean(least) > 0:
        return True, f"Its latents are more monosemantic than every control's, but not in every seed: {figure}."
    return False, f"But its latents are not more monosemantic than every control's: {figure}."
