"""From a run folder to the numbers of its report."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np

from monoeval.metrics.paired import holm
from monoeval.metrics.scores import StandardLine
from monoeval.report.compare import fill
from monoeval.report.layout import divide, slugs
from monoeval.report.model import Comparison, Difference, Summary, Table
from monoeval.report.points import DETECTION
from monoeval.report.scores import Scores
from monoeval.report.wording import listed
from monoeval.suite.ledger import Row
from monoeval.suite.units import whole

ALPHA = 0.05


def summarise(folder: Path) -> Summary:
    """Summarise the run in `folder`; nothing is written.

    Intervals are 95 %, by variance components (test rows × seeds) from `metrics.paired`. The family for Holm's
    adjustment is what the recipe names, or else every gain over a baseline that is judged. Raises UsageError
    where `folder` is no run, MonoevalError where a file of it is missing or damaged.
    """
    scores = Scores(folder)
    divided = divide(scores.points)
    names = slugs([title for title, _ in divided])
    return summary_of(
        scores, [fill(scores, title, slug, points) for slug, (title, points) in zip(names, divided, strict=True)]
    )


def summary_of(scores: Scores, tables: Sequence[Table]) -> Summary:
    """The summary of filled tables: their family of verdicts adjusted, with notes on all of `scores`."""
    comparisons = [c for table in tables for c in table.comparisons]
    named = scores.recipe.get("family") or []
    family, everywhere = _family(tables, named), _hoisted(comparisons)
    adjusted = dict(zip(map(id, family), holm([_p(d) for d in family]), strict=True)) if family else {}
    tables = [
        replace(
            table, comparisons=tuple(_finished(c, adjusted, bool(named), everywhere) for c in table.comparisons)
        )
        for table in tables
    ]
    arms = tuple(str(arm["name"]) for arm in scores.arms)
    certified = [row for row in scores.rows if row.status == "ok" and "gap" in row.probe]
    details = [_certificate(certified)] if certified else []
    notes = _notes(scores, tables, len(family), bool(named), everywhere)
    if not all(row.converged and np.isfinite(row.probe["gap"]) for row in certified):
        notes, details = notes + details, []
    measures = {arm: scores.adapter_measures(arm) for arm in arms}
    return Summary(
        folder=str(scores.folder),
        name=str(scores.recipe.get("name", scores.folder.name)),
        note=scores.recipe.get("note"),
        arms=arms,
        tables=tuple(tables),
        probes={arm: str(scores.probe(arm)["kind"]) for arm in arms},
        adapters={arm: found for arm, found in measures.items() if found},
        units=len(scores.units),
        levels=whole(scores.units)[1] if scores.crossed else None,
        notes=tuple(notes),
        details=tuple(details),
        reference=(scores.recipe.get("reference") or {}).get("model"),
        environment=scores.recipe.get("environment") or {},
        recipe=scores.recipe_text,
        rows=tuple(scores.rows),
    )


def to_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain values for `--json`; accuracies and differences are shares, not per cent."""
    made = asdict(replace(summary, rows=()))
    del made["recipe"]
    made["rows"] = [row.model_dump(mode="json") for row in summary.rows]
    for table, source in zip(made["tables"], summary.tables, strict=True):
        for column, described in zip(table["columns"], source.columns, strict=True):
            column["points"] = [point._asdict() for point in described.points]
    plain: dict[str, Any] = _plain(made)
    return plain


def _plain(value: Any) -> Any:
    """JSON knows no infinity, NaN or NumPy scalar: the first two become null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _family(tables: Sequence[Table], named: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """The differences that Holm's adjustment is over.

    What it was to be over counts even where it has no score or the adapter was not trained, so that no outcome
    makes a family smaller.
    """
    comparisons = [(table.scenario, c) for table in tables for c in table.comparisons]
    if not named:
        return [c.baseline for _, c in comparisons if c.is_claim and c.comparable]
    found: dict[int, Difference] = {}
    for member in named:
        for scenario, comparison in comparisons:
            if scenario != member["scenario"] or member["arm"] not in (None, comparison.arm):
                continue
            if member["arm"] is None and not comparison.is_claim:
                continue
            against = member["against"] or comparison.baseline.against
            found |= {id(d): d for d in comparison.differences if d.against == against}
    return list(found.values())


def _p(difference: Difference) -> float:
    return 1.0 if difference.primary.interval is None else difference.primary.interval.p_value


def _hoisted(comparisons: Sequence[Comparison]) -> list[str]:
    """Qualifications that hold for every comparison of the report, to be said once."""
    if len(comparisons) < 2:
        return []
    shared = set.intersection(*(set(c.notes) for c in comparisons))
    return [note for note in comparisons[0].notes if note in shared]


def _finished(
    comparison: Comparison, adjusted: Mapping[int, float], named: bool, said: Sequence[str]
) -> Comparison:
    """With adjusted p values, and without the notes that are said once for all."""
    notes = [note for note in comparison.notes if note not in said]
    family = "the recipe's family" if named else "all verdicts of this report"
    for difference in comparison.differences:
        p = adjusted.get(id(difference))
        if p is not None and _p(difference) <= ALPHA < p:
            which = "" if difference is comparison.baseline else f"against {difference.against}: "
            notes.append(f"{which}not after adjustment for {family}: p = {p:.2f}")
    if named and comparison.is_claim and id(comparison.baseline) not in adjusted:
        notes.append("outside the recipe's family: exploratory")
    baseline, *controls = (replace(d, adjusted_p=adjusted.get(id(d))) for d in comparison.differences)
    return replace(comparison, baseline=baseline, controls=tuple(controls), notes=tuple(notes))


def _notes(
    scores: Scores, tables: Sequence[Table], family: int, named: bool, everywhere: Sequence[str]
) -> list[str]:
    notes = [f"Every comparison here: {'; '.join(everywhere)}."] if everywhere else []
    ways = "random-effects" if scores.crossed else "two-way"
    over = f"test rows crossed with seeds ({ways} variance components, Satterthwaite degrees of freedom)"
    if len(scores.units) == 1:
        over = "test rows only, as there is one seed"
    notes.append(
        f"Intervals are 95 %, for the mean over {over}; differences are paired by test row and draw. “Could see” "
        "is the smallest true difference, in points, that would have been found with 80 % power."
    )
    if scores.crossed:
        notes.append(
            f"Seeds are crossed: {whole(scores.units)[1]}. Adapters are of each backbone, draws the same for all. "
            "What part of the variance is whose stands under “seeds redraw” in report.md; of few levels these are "
            "rough estimates."
        )
    elif varied := _varied(tables):
        notes.append(varied)
    if family > 1:
        which = (
            f"{family} comparisons that the recipe names as its family"
            if named
            else f"{family} gains over a baseline that are judged here"
        )
        notes.append(f"Adjusted p is Holm's over the {which}; the verdicts rest on the unadjusted 95 % intervals.")
    if family and any(c.controls for table in tables for c in table.comparisons):
        notes.append("Beyond the controls means a gain over the baseline and over every control.")
    if any(column.negative_control for table in tables for column in table.columns):
        notes.append("Levels marked ∅ have no label signal left: negative controls, outside means and verdicts.")
    if any(column.extra for table in tables for column in table.columns):
        notes.append(
            "Corruptions marked † are the extra ones of ImageNet-C, made to tune on: outside means and verdicts."
        )
    shown = {measure.name for table in tables for measure in table.measures}
    lines = scores.standard.items()
    notes += [_about_line(target, line) for target, line in lines if f"effective_robustness_{target}" in shown]
    if any(table.scenario == DETECTION for table in tables):
        notes.append(
            "AUROC is the chance that a row of the data looks more like it than one from elsewhere does; its "
            "intervals take rows of both sides as drawn (placements of DeLong et al. 1988)."
        )
    bad = sum(row.status != "ok" for row in scores.rows)
    if bad:
        notes.append(f"{bad} of {len(scores.rows)} scores have no result; the reasons stand below their tables.")
    edges = [row for row in scores.rows if row.l2_at_edge]
    counts = {
        "belong to no seed of this study and are not used": len(scores.rows) - len(scores.used),
        "rest on the largest or smallest L2 tried, so a wider grid might fit better": sum(
            row.l2 is not None for row in edges
        ),
        "rest on the last value of what their probe tunes, so a wider grid might fit better": sum(
            row.l2 is None for row in edges
        ),
        "come from probes that stopped before they converged": sum(not row.converged for row in scores.rows),
    }
    notes += [f"{count} of {len(scores.rows)} scores {what}." for what, count in counts.items() if count]
    if any(arm.get("latents") for arm in scores.arms):
        notes.append(
            "The most, least and random monosemantic latents were ranked by the clean labels of all training "
            "rows, also where the probe sees few or noisy ones."
        )
    greedy = [str(arm["name"]) for arm in scores.arms if _is_greedy(scores.adapter_measures(arm["name"]))]
    if greedy:
        notes.append(
            f"The stability over seeds of {listed(greedy)} was matched greedily, as dictionaries of more than "
            "4,096 latents are: it and its chance level may be too low."
        )
    return notes + _about_sweeps(scores.rows) + _about_probes(scores)


def _is_greedy(measures: Mapping[str, float]) -> bool:
    return measures.get("stability_exact", 1.0) < 1


def _about_line(target: str, line: StandardLine) -> str:
    """What effective robustness to a target is measured from."""
    sign = "+" if line.intercept >= 0 else "−"
    return (
        f"Effective robustness to {target} is the accuracy beyond σ({line.slope:.2f} · logit(clean) {sign} "
        f"{abs(line.intercept):.2f}), the least-squares line of {line.models} standard models that the recipe "
        f"gives (R² = {line.r2:.2f}, clean accuracy {100 * line.low:.1f} to {100 * line.high:.1f} %); its "
        "intervals take the line as known. Relative robustness is the gain over the baseline (Taori et al. 2020)."
    )


def _about_sweeps(rows: Sequence[Row]) -> list[str]:
    """How many adapters each arm chose from, and which it used how often."""
    tried: dict[str, int] = {}
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        tried[row.arm] = max(row.tried, tried.get(row.arm, 1))
        if row.chosen:
            used[row.arm][", ".join(f"{name} {value:g}" for name, value in row.chosen.items())] += 1
    if not used:
        return []
    budget = ", ".join(f"{arm} {count}" for arm, count in tried.items())
    shares = (
        f"{arm}: " + ", ".join(f"{settings} for {count} scores" for settings, count in counts.most_common())
        for arm, counts in used.items()
    )
    return [
        f"Adapters tried: {budget}. Each fit of a probe uses the one with the best validation loss, and test rows "
        f"play no part: {'; '.join(shares)}."
    ]


def _varied(tables: Sequence[Table]) -> str:
    """What intervals cover beside test rows."""
    found = {d.varied for t in tables for c in t.comparisons for d in c.differences if d.varied}
    if not found:
        return ""
    if len(found) > 1:
        which = "what stands under “seeds redraw” in report.md, and what is fixed there is not covered"
    else:
        (only,) = found
        which = f"the {listed(only)}" + (" and nothing else" if "backbone" not in only else "")
    together = ": their parts cannot be told apart" if any(len(some) > 1 for some in found) else ""
    return f"Each seed redraws at once {which}{together}."


_UNTUNED = {
    "paper": "Another protocol than that of the tuned probes: the paper probe trains for a fixed number of epochs "
    "and is tuned for no arm.",
    "paper-cached": "Another protocol than that of the tuned probes, and than the paper's own: the paper-cached "
    "probe trains for a fixed number of epochs on features of unchanged images and is tuned for no arm.",
}


def _about_probes(scores: Scores) -> list[str]:
    """Which arm has which probe where they differ, and that the paper's are another protocol."""
    arms: dict[str, list[str]] = {}
    for arm in scores.arms:
        arms.setdefault(str(scores.probe(arm["name"])["kind"]), []).append(str(arm["name"]))
    kinds = "; ".join(f"{kind} for {', '.join(names)}" for kind, names in arms.items())
    notes = [f"Probes: {kinds}."] if len(arms) > 1 else []
    return notes + [_UNTUNED[kind] for kind in arms if kind in _UNTUNED]


def _certificate(rows: Sequence[Row]) -> str:
    """How far the objectives of probes can lie from their optimum: the largest bound, rounded up."""
    kinds = listed(list(dict.fromkeys(row.probe_kind for row in rows)))
    worst = float(np.max([row.probe["gap"] for row in rows]))
    if not np.isfinite(worst):
        return f"How far the {kinds} probes lie from their optimum was not proven for every score."
    bound = float(Context(prec=2, rounding=ROUND_CEILING).create_decimal_from_float(worst))
    return f"The objective of every {kinds} probe is proven to lie within a relative {bound:.2g} of its optimum."
