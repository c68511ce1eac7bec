"""From a run folder to the numbers of its report."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import Any

import numpy as np

from monoeval.metrics.paired import holm
from monoeval.report.compare import fill
from monoeval.report.layout import divide, slugs
from monoeval.report.model import Comparison, Summary, Table
from monoeval.report.scores import DETECTION, Scores, mean_measures
from monoeval.report.wording import listed
from monoeval.suite.ledger import Row

ALPHA = 0.05


def summarise(folder: Path) -> Summary:
    """Summarise the run in `folder`; nothing is written.

    Intervals are 95 % two-way variance components (test rows × seeds) from `metrics.paired`. The baseline
    comparisons that get a verdict are one family for Holm's adjustment. Raises UsageError where `folder` is no
    run, MonoevalError where a file of it is missing or damaged.
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
    family, everywhere = _adjusted(comparisons), _hoisted(comparisons)
    tables = [
        replace(table, comparisons=tuple(_finished(c, family.get(id(c)), everywhere) for c in table.comparisons))
        for table in tables
    ]
    arms = tuple(str(arm["name"]) for arm in scores.arms)
    certified = [row for row in scores.rows if row.status == "ok" and "gap" in row.probe]
    details = [_certificate(certified)] if certified else []
    notes = _notes(scores, tables, len(family), everywhere)
    if not all(row.converged and np.isfinite(row.probe["gap"]) for row in certified):
        notes, details = notes + details, []
    measures = {arm: mean_measures([row for row in scores.rows if row.arm == arm]) for arm in arms}
    return Summary(
        folder=str(scores.folder),
        name=str(scores.recipe.get("name", scores.folder.name)),
        note=scores.recipe.get("note"),
        arms=arms,
        tables=tuple(tables),
        probes={arm: str(scores.probe(arm)["kind"]) for arm in arms},
        adapters={arm: found for arm, found in measures.items() if found},
        units=len(scores.units),
        notes=tuple(notes),
        details=tuple(details),
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


def _adjusted(comparisons: Sequence[Comparison]) -> dict[int, float]:
    """Holm-adjusted p of the primary gain over the baseline, for the comparisons that make a claim."""
    family = [(c, c.baseline.primary.interval) for c in comparisons if c.kind not in {"control", "no verdict"}]
    held = {id(c): interval.p_value for c, interval in family if interval is not None}
    return dict(zip(held, map(float, holm(list(held.values()))), strict=True)) if held else {}


def _hoisted(comparisons: Sequence[Comparison]) -> list[str]:
    """Qualifications that hold for every comparison of the report, to be said once."""
    if len(comparisons) < 2:
        return []
    shared = set.intersection(*(set(c.notes) for c in comparisons))
    return [note for note in comparisons[0].notes if note in shared]


def _finished(comparison: Comparison, adjusted_p: float | None, said: Sequence[str]) -> Comparison:
    """With its adjusted p, and without the notes that are said once for all."""
    notes = [note for note in comparison.notes if note not in said]
    interval = comparison.baseline.primary.interval
    if interval is not None and adjusted_p is not None and interval.p_value <= ALPHA < adjusted_p:
        notes.append(f"not after adjustment for all verdicts of this report: p = {adjusted_p:.2f}")
    return replace(comparison, adjusted_p=adjusted_p, notes=tuple(notes))


def _notes(scores: Scores, tables: Sequence[Table], family: int, everywhere: Sequence[str]) -> list[str]:
    notes = [f"Every comparison here: {'; '.join(everywhere)}."] if everywhere else []
    notes.append(
        "Intervals are 95 %, for the mean over test rows crossed with seeds (two-way variance components, "
        "Satterthwaite degrees of freedom); differences are paired by test row and draw. “Could see” is the "
        "smallest true difference, in points, that would have been found with 80 % power."
    )
    if family > 1:
        notes.append(
            f"Adjusted p is Holm's over the {family} gains over a baseline that get a verdict here; the verdicts "
            "rest on the unadjusted 95 % intervals."
        )
    if family:
        notes.append("Beyond the controls means a gain over the baseline and over every control.")
    if any(column.negative_control for table in tables for column in table.columns):
        notes.append("Levels marked ∅ have no label signal left: negative controls, outside means and verdicts.")
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
        "belong to no seed of this study and are not used": scores.strays(),
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
    return notes + _about_probes(scores)


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
