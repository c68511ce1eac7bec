"""The table of an inspection: measures of an adapter beside chance, or what would have to be given for them."""

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import fmean

import numpy as np

from monoeval.adapters.base import Adapter, Codes
from monoeval.adapters.learned import HELD_OUT, UNTRAINED
from monoeval.data.corruptions import SUBSTITUTES
from monoeval.data.images import Data, Ints, Transform
from monoeval.errors import MonoevalError
from monoeval.keys import draw_seed
from monoeval.metrics.dictionary import coherence
from monoeval.metrics.drift import drift
from monoeval.metrics.latents import MIN_SUPPORT, Latents
from monoeval.metrics.separation import scatter_ratio
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Problem
from monoeval.probes.spec import Logistic
from monoeval.report.gallery import Measure, number
from monoeval.suite import measures

TOP_ROWS = 20
"""Strongest rows of each latent that the measures look at, the same for every method."""
NO_DECODER = "the method has no decoder"


def of_latents(
    codes: Codes, labels: Ints, n_classes: int, latents: Latents, shares: Mapping[str, float], compared: str
) -> tuple[Measure, ...]:
    """What is known of the codes of clean test images; `shares` are what `measures.explained` gives."""
    found = latents.summary()
    n, width = codes.features.n, codes.width

    def mean(title: str, name: str, note: str) -> Measure:
        return Measure(title, found[name], found[f"{name}_chance"], note)

    directions = codes.adapter.directions
    alike = None if directions is None else coherence(directions)
    supported = f"{100 * found['supported_share']:.0f} % of latents have {MIN_SUPPORT} active rows"
    top_supported = f"{100 * found['top_supported_share']:.0f} % of latents have {TOP_ROWS} active rows"
    return (
        Measure(
            "explained variance",
            shares.get(f"explained_variance{HELD_OUT}"),
            note="of held-out features" if shares else NO_DECODER,
        ),
        *(
            Measure(title, shares[name], note=note)
            for title, name, note in (
                (
                    "explained variance, untrained",
                    f"explained_variance{UNTRAINED}{HELD_OUT}",
                    "by the adapter before its training, with as many active latents",
                ),
                (
                    "explained variance, PCA",
                    "explained_variance_pca",
                    "by as many components as latents are active",
                ),
            )
            if name in shares
        ),
        Measure("L0", found["l0"], note=f"± {number(found['l0_std'])} between rows"),
        Measure(
            "dead share", found["dead_share"], note=f"{round(found['dead_share'] * width):,} of {width:,} latents"
        ),
        Measure("effective rank", found["effective_rank"], note=f"at most {found['effective_rank_bound']:,.0f}"),
        mean("semantic consistency", "consistency", supported),
        mean(f"top-{TOP_ROWS} consistency", "top_consistency", top_supported),
        mean("class entropy", "entropy", f"over log {n_classes}; {supported}"),
        mean("monosemanticity score", "monosemanticity", compared),
        Measure(
            "decoder coherence",
            None if alike is None else alike.mean,
            None if alike is None else math.sqrt(2 / (math.pi * codes.features.width)),
            NO_DECODER if alike is None else f"mean |cos| of two rows; the nearest {number(alike.nearest)}",
        ),
        Measure(
            "scatter ratio",
            scatter_ratio(codes, labels, n_classes),
            (n_classes - 1) / (n - n_classes) if n > n_classes else None,
            "between over within classes",
        ),
    )


def margins(train: Codes, test: Codes, data: Data) -> tuple[Measure, ...]:
    """Margins of test rows by a logistic probe on all training rows; chance is one on their labels permuted."""
    labels, rows = data.train.labels, np.arange(len(data.train))
    permuted = np.random.default_rng(draw_seed("inspection", "permuted")).permutation(labels)
    problems = [Problem(rows, given, groups=data.train.groups) for given in (labels, permuted)]
    said = {
        "margin": (
            "margin",
            "median; the true class's logit less the largest other, of a probe on training rows",
        ),
        "margin_low": (
            "margin, of the lowest 5 %",
            "5 % of rows do not exceed it; below 0 a row is classified wrongly",
        ),
    }
    try:
        probes = fit_probes(TrainingCodes.of(train), problems, len(data.train.class_names), Logistic())
        own, chance = (
            measures.margins(test, np.arange(len(test)), data.test.labels, probes, member) for member in (0, 1)
        )
    except MonoevalError as error:  # a measure that cannot be made takes no other with it
        return tuple(Measure(title, None, note=str(error)) for title, _ in said.values())
    return tuple(Measure(title, own.get(name), chance.get(name), note) for name, (title, note) in said.items())


def stability(method: str, first: Adapter, others: Iterable[Adapter], alone: str) -> Measure:
    """How alike dictionaries of seeds in a row are, on average.

    `others` are fitted as they are asked for, which methods without a decoder do not do; `alone` says why there is
    none.
    """
    title = "stability over seeds"
    if first.directions is None:
        return Measure(title, None, note=NO_DECODER)
    try:
        members = [first, *others]
    except MonoevalError as error:
        return Measure(title, None, note=f"another seed failed: {error}")
    if len(members) == 1:
        return Measure(title, None, note=alone)
    pairs = [measures.stability_of(method, *pair) for pair in pairwise(members)]
    if not all(pairs):
        return Measure(title, None, note="the seeds' dictionaries differ in width")
    how = "" if all(found["stability_exact"] for found in pairs) else ", matched greedily"
    value, chance = (fmean(found[name] for found in pairs) for name in ("stability", "stability_chance"))
    return Measure(title, value, chance, f"mean cosine of matched latents of {len(members)} seeds{how}")


def drifts(clean: Codes, changed: Codes | None, corruption: Transform | None) -> tuple[Measure, ...]:
    """How far `corruption` moves the codes of test images."""
    titles = "cosine under change", "Jaccard under change", "L0 shift under change", "explained variance shift"
    if changed is None or corruption is None:
        return tuple(Measure(title, None, note="needs --corruption") for title in titles)
    found = drift(clean, changed)
    name = SUBSTITUTES.get(corruption.name, corruption.name)
    under = f"under {name} of severity {corruption.severity:g}"
    values = found.cosine, found.jaccard, found.l0_shift, found.explained_shift
    notes = (
        f"of an image's two codes, {under}",
        f"of its two sets of active latents, {under}",
        under,
        NO_DECODER if math.isnan(found.explained_shift) else under,
    )
    return tuple(map(Measure, titles, values, [None] * len(titles), notes))
