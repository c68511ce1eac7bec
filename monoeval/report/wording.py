"""How numbers are written, the same in every format: accuracies in per cent, differences in percentage points."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monoeval.adapters.learned import WHOLE, not_trained
from monoeval.metrics.components import Levels, Shares
from monoeval.metrics.paired import Interval
from monoeval.report.model import Cell, Column, Comparison, Difference, Measure, Summary, Table, Value
from monoeval.report.points import FINETUNING

MINUS = "\N{MINUS SIGN}"
NOT_AVAILABLE = "n/a"
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Footnotes:
    """Remarks under a table, each written once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, *texts: str) -> str:
        """The superscript numbers of `texts`; empty where there are none."""
        for text in texts:
            if text not in self.texts:
                self.texts.append(text)
        return " ".join(str(self.texts.index(text) + 1).translate(_SUPERSCRIPT) for text in texts)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter((str(n).translate(_SUPERSCRIPT), text) for n, text in enumerate(self.texts, 1))


def capital(text: str) -> str:
    """With a capital to begin a sentence; the rest stays."""
    return text[:1].upper() + text[1:]


def signed(share: float) -> str:
    """A difference in points, with its sign: +1.2."""
    rounded = round(100 * share, 1)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else '±'}{abs(rounded):.1f}".replace("inf", "∞")


def accuracy(cell: Cell, footnotes: Footnotes) -> str:
    """An accuracy in per cent with the distance to the farther end of its interval: 93.4 ± 1.2."""
    mark = footnotes.mark(*cell.remarks)
    if cell.interval is None:
        return NOT_AVAILABLE + mark
    farther = max(cell.interval.high - cell.interval.mean, cell.interval.mean - cell.interval.low)
    return f"{100 * cell.interval.mean:.1f} ± {100 * farther:.1f}{mark}".replace("inf", "∞")


def points(interval: Interval) -> str:
    """A difference in points with its interval: +2.1 [−0.3, +4.5]."""
    return f"{signed(interval.mean)} [{signed(interval.low)}, {signed(interval.high)}]"


def difference(cell: Cell, footnotes: Footnotes) -> str:
    """A cell of the table of differences."""
    mark = footnotes.mark(*cell.remarks)
    return (NOT_AVAILABLE if cell.interval is None else points(cell.interval)) + mark


def p_value(p: float | None) -> str:
    """A p value to three places."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def smallest(interval: Interval | None) -> str:
    """The smallest true difference that would be found with 80 % power, in points."""
    return "" if interval is None else f"{100 * interval.smallest:.1f}".replace("inf", "∞")


def heading(column: Column) -> str:
    """A column's heading; ∅ marks a negative control, † an extra corruption."""
    mark = " ∅" if column.negative_control else " †" if column.extra else ""
    return column.label + mark


def differences(comparison: Comparison) -> Iterator[tuple[str, Difference, float | None]]:
    """The lines of a comparison, its baseline's first: what against, the difference, its adjusted p."""
    for difference in comparison.differences:
        yield difference.against, difference, difference.adjusted_p


DIFFERENCE_HEADINGS = ("difference", "fewer errors, %", "p", "adjusted p", "could see", "seeds redraw")


def difference_cells(found: Difference, footnotes: Footnotes) -> list[str]:
    """What stands under `DIFFERENCE_HEADINGS`."""
    interval = found.primary.interval
    return [
        difference(found.primary, footnotes),
        _fewer_errors(found),
        p_value(interval.p_value if interval else None),
        p_value(found.adjusted_p),
        smallest(interval),
        _seeds_redraw(found),
    ]


def _fewer_errors(found: Difference) -> str:
    """The relative error reduction in per cent, with its interval: +18 [+4, +30]."""
    if found.fewer_errors is None:
        return "" if found.primary.interval is None else NOT_AVAILABLE
    value, low, high = (_whole(100 * share) for share in vars(found.fewer_errors).values())
    return f"{value} [{low}, {high}]"


def _whole(per_cent: float) -> str:
    rounded = round(per_cent)
    return f"{'+' if rounded > 0 else MINUS if rounded < 0 else '±'}{abs(rounded)}"


def _seeds_redraw(found: Difference) -> str:
    """What the interval covers beside test rows, and the share of its variance that comes from there."""
    interval = found.primary.interval
    if interval is None:
        return ""
    if found.units == 1:
        return "one seed"
    if not found.varied:
        return "nothing"
    if interval.shares is not None:
        sources = _sources(interval.shares, found.varied, found.levels)
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share in sources)
    return f"{' + '.join(found.varied)}: {100 * interval.unit_share:.0f} %"


COUNTED = {"backbone": "backbones", "adapter": "adapters", FINETUNING: "adapters", "draw": "draws"}
"""What of `SEEDS` a recipe counts it by; a finetuning stands in the adapter's place."""


_INTERPLAY = "draws' interplay with the rest"


def _sources(shares: Shares, varied: Sequence[str], levels: Levels | None) -> list[tuple[str, float]]:
    """What the variance of a mean comes from, of what is varied, and its share.

    Where each backbone has one adapter (or finetuning) the two cannot be told apart and are one source.
    """
    found, names = {**vars(shares), FINETUNING: shares.adapter}, list(varied)
    of_backbones = len(names) > 1 and names[0] == "backbone" and names[1] != "draw"
    if of_backbones and levels is not None and levels.adapters == 1:
        names[:2] = [f"backbone with its {names[1]}"]
        found[names[0]] = shares.backbone
    both = [(_INTERPLAY, shares.interplay)] if "draw" in names and len(names) > 1 else []
    return [*((name, found[name]) for name in names), *both, ("test rows", shares.rows)]


def uncertain(shares: Shares, varied: Sequence[str], levels: Levels) -> str:
    """Whose doing most of the uncertainty is, and what to add to have less of it."""
    (first, most), (second, more), *_ = sorted(_sources(shares, varied, levels), key=lambda source: -source[1])
    if most <= 0.5:
        return f"no one source has most of the variance: {first} {100 * most:.0f} %, {second} {100 * more:.0f} %"
    told = {
        "test rows": "comes from test rows: add test rows",
        _INTERPLAY: f"is {_INTERPLAY}: add draws or what they are crossed with",
    }
    if first.startswith("backbone with"):
        told[first] = f"comes from the {first}: add backbones"
    return f"{100 * most:.0f} % of the variance " + told.get(first, f"is the {first}'s: add {first}s")


def headline(comparison: Comparison, said: Sequence[str] = ()) -> str:
    """What follows the kind of a verdict: its sentence, and what qualifies it but for what was `said` already."""
    sentence = comparison.sentence
    repeats = sentence.lower().startswith(comparison.kind)
    rest = sentence[len(comparison.kind) :] if repeats else f". {sentence}"
    notes = "; ".join(note for note in comparison.notes if note not in said)
    return f"{rest} ({notes})" if notes else rest


def by_arm(summary: Summary) -> Iterator[tuple[str, list[str], list[tuple[Table, Comparison]]]]:
    """Each arm with a verdict, what qualifies all of its verdicts, and these."""
    for arm in summary.arms:
        claims = [(table, comparison) for table, comparison in summary.claims if comparison.arm == arm]
        if claims:
            shared = set.intersection(*(set(c.notes) for _, c in claims)) if len(claims) > 1 else set()
            yield arm, [note for note in claims[0][1].notes if note in shared], claims


def about(summary: Summary) -> str:
    """One line on the size of the study."""
    ok = sum(row.status == "ok" for row in summary.rows)
    seeds = str(summary.levels or f"{summary.units} seed{'s' if summary.units != 1 else ''}")
    failed = f", {len(summary.rows) - ok} without a result" if ok < len(summary.rows) else ""
    arms = f"{len(summary.arms)} arm{'s' if len(summary.arms) != 1 else ''}"
    kinds = list(dict.fromkeys(summary.probes.values()))
    probes = "" if kinds == ["logistic"] else f", {listed(kinds)} probes"
    return f"{arms}, {seeds}, {ok} scores{failed}{probes}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


ABOUT_SUMMARY = (
    "Summary measures, in per cent. Relative accuracy is a share of the arm's own accuracy without the change. "
    "ECE is the expected calibration error (15 equal bins of confidence; it falls with more rows); scaled: "
    "after one temperature that was fitted on the other half of the test rows. The worst class is picked after "
    "the fact. What stands without an interval is a mean over scores."
)


def summary_table(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the summary measures of a table, and nothing where it has none."""
    lines = [[arm, *(measure(m, arm) for m in table.measures)] for arm in table.cells]
    return ["arm", *(m.label for m in table.measures)], lines if table.measures else []


def measure(of: Measure, arm: str) -> str:
    """A summary measure in per cent with the half-width of its interval, if it has one; a temperature as it is."""
    value = of.values.get(arm, Value(float("nan")))
    if not math.isfinite(value.mean):
        return NOT_AVAILABLE
    if of.name == "temperature":
        return f"{value.mean:.2f}"
    text = f"{100 * value.mean:.1f}".replace("-", MINUS)
    if value.low is None or value.high is None:
        return text
    return f"{text} ± {50 * (value.high - value.low):.1f}".replace("inf", "∞")


_OF_EACH = {"area", "effective_robustness"}
"""Measures of which there is one a series, or a target."""


def overview(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """One table for the whole report: of each scenario the measure that says most that its table does not."""
    chosen = []
    for table in sorted(summary.tables, key=lambda t: t.scenario == "clean"):
        if table.scenario == "few-shot":
            continue  # its mean says as much
        first = {"ood": ["effective_robustness", "gap"], "clean": ["ece", "ece_t"]}.get(
            table.scenario, ["area", "relative_accuracy"]
        )
        found = [
            m
            for name in first
            for m in table.measures
            if m.name == name or (name in _OF_EACH and m.name.startswith(f"{name}_"))
        ]
        chosen += [(f"{table.title}: {m.label}", m) for m in (found if table.scenario == "clean" else found[:1])]
    lines = [[arm, *(measure(m, arm) for _, m in chosen)] for arm in summary.arms]
    return ["arm", *(label for label, _ in chosen)], lines if chosen else []


def lead(table: Table) -> str:
    """What the table's verdicts are about."""
    return f"{table.rows:,} test rows; verdicts are about {table.primary_label}"


_MEASURES = {
    "explained_variance_held_out": (
        "explained variance, held out",
        "{:.3f}",
        "explained_variance_untrained_held_out",
    ),
    "l0": ("L0", "{:.1f}", None),
    "dead_share": ("dead latents", "{:.1%}", None),
    "top_consistency": ("top-20 consistency", "{:.2f}", "top_consistency_chance"),
    "monosemanticity": ("monosemanticity", "{:.3f}", "monosemanticity_chance"),
    "explained_variance_pca": ("by PCA, held out", "{:.3f}", None),
    "explained_variance": ("explained variance, training rows", "{:.3f}", "explained_variance_untrained"),
    "consistency": ("semantic consistency", "{:.2f}", "consistency_chance"),
    "entropy": ("class entropy", "{:.2f}", "entropy_chance"),
    "scatter_ratio": ("scatter ratio", "{:.3f}", None),
    "margin": ("margin", "{:.2f}", "margin_low"),
    "effective_rank": ("effective rank", "{:.1f}", "effective_rank_bound"),
    "coherence": ("decoder coherence", "{:.3f}", None),
    "stability": ("stability over seeds", "{:.3f}", "stability_chance"),
    "drift_cosine": ("cosine under change", "{:.3f}", None),
    "drift_jaccard": ("Jaccard under change", "{:.3f}", None),
    "drift_l0_shift": ("L0 shift under change", "{:+.1f}", None),
    "drift_explained_shift": ("explained variance shift under change", "{:+.3f}", None),
    "low_rank_active": ("active low-rank latents", "{:.1%}", None),
}
"""Measure → its heading, how it is written, and the measure that stands beside it in brackets; a terminal shows
the first of them, as many as fit."""

_UNSHOWN = ("drift_", WHOLE, "stability_exact")
"""How names of measures begin that are shown elsewhere or stand in others: for others a heading is made up."""

_ABOUT_MEASURES = (
    "In brackets: the explained variance of the adapter's untrained self, class measures under permuted labels, "
    "the margin that 5 % of rows do not exceed, the largest effective rank that could come out, and the stability "
    "of random directions. An adapter counts as not trained where it explains no more than its untrained self, "
    "which has as many active latents; that is judged on clean held-out images where the study has them, as PCA "
    "is, with as many components as a row has active latents. L0, dead latents, effective rank and what is said "
    "of classes are of those images too. Top-20 consistency is the share of the commonest class among a latent's "
    "20 strongest rows, so many for every arm; semantic consistency and class entropy look at all rows that "
    "fire it, which favours sparse codes. Monosemanticity is the mean cosine, weighted by how much they fire a "
    "latent, of the embeddings of two images by {reference}; in brackets that of any two. Margin "
    "is the median, over clean held-out images, of the true class's logit less the largest other one, by the "
    "probe on all clean training rows. Cosine and Jaccard under change compare the codes of an image with those "
    "of the changed image, over all changes of the study; signed dense codes are all active, so their Jaccard is "
    "1. Shifts under change are what the changed images have more of it "
    "than the same images unchanged."
)


def about_measures(summary: Summary) -> str:
    """What the columns of `adapter_table` are."""
    return _ABOUT_MEASURES.replace("{reference}", summary.reference or "the study's reference model")


def adapter_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the adapters' measures, the standard ones first."""
    found = dict.fromkeys(name for measures in summary.adapters.values() for name in measures)
    beside = {name for _, _, name in _MEASURES.values()}
    others = [n for n in found if n not in _MEASURES and n not in beside and not n.startswith(_UNSHOWN)]
    shown = {name: about for name, about in _MEASURES.items() if name in found}
    shown |= {name: (name.replace("_", " "), "{:.4g}", None) for name in others}

    def cell(measures: Mapping[str, float], name: str) -> str:
        if name not in measures:
            return ""
        _, form, other = shown[name]
        text, *beside = (
            form.format(measures[n]) if math.isfinite(measures[n]) else NOT_AVAILABLE
            for n in (name, other)
            if n is not None and n in measures
        )
        return f"{text} ({beside[0]})" if beside else text

    lines = [
        [f"{arm} (not trained)" if not_trained(measures) else arm, *(cell(measures, name) for name in shown)]
        for arm, measures in summary.adapters.items()
    ]
    return ["arm", *(label for label, _, _ in shown.values())], lines


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as one list of names and texts."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
