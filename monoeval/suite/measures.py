"""What is said of an adapter beside its scores: measures of its codes, of its probe's margins, of drift."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from monoeval.adapters.base import Adapter, Codes
from monoeval.adapters.learned import HELD_OUT, UNTRAINED
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import ImageSet, Ints
from monoeval.keys import key
from monoeval.metrics.dictionary import coherence, explained_variance, stability
from monoeval.metrics.drift import drift
from monoeval.metrics.latents import measure
from monoeval.metrics.separation import margin_quantiles, scatter_ratio
from monoeval.metrics.separation import margins as of_rows
from monoeval.probes.problem import Probes

KEPT = 256
"""Measures of this many codes are kept: groups that differ in their draw alone ask for the same ones."""
_found: dict[str, dict[str, float]] = {}


def once(name: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `make` gives, made once in a process for each name; the oldest are forgotten."""
    if name not in _found:
        made = make()
        while len(_found) >= KEPT:
            del _found[next(iter(_found))]
        _found[name] = made
    return _found[name]


def held_out(codes: Codes, images: ImageSet, reference: FeatureSet | None) -> dict[str, float]:
    """Measures of the codes of clean test images, but for undefined ones; `reference` are embeddings of those."""
    n_classes = len(images.class_names)
    found = measure(codes, images.labels, n_classes, reference=reference).summary()
    found["scatter_ratio"] = scatter_ratio(codes, images.labels, n_classes)
    directions = codes.adapter.directions
    if directions is not None:
        found["coherence"] = coherence(directions).mean
    return _finite(found)


def explained(codes: Codes, train: FeatureSet, seed: int | None) -> dict[str, float]:
    """Explained variance of held-out rows by their codes, by the adapter before its training, and by PCA.

    `train` are the features of the training images and `seed` the adapter's; without one there is no untrained
    self. PCA has as many components as a row has active latents. Empty where the adapter has no way back.
    """
    adapter, rows = codes.adapter, TrainingRows(train, None, codes.device)
    first = np.arange(min(1, len(codes)))
    if not len(first) or adapter.decode(next(codes.chunks(first))) is None:
        return {}
    found = {f"explained_variance{HELD_OUT}": explained_variance(codes)}
    before = None if seed is None else adapter.untrained(rows, seed=seed)
    if before is not None:
        value = explained_variance(Codes(codes.features, before, codes.device))
        found[f"explained_variance{UNTRAINED}{HELD_OUT}"] = value
        components = max(1, round(adapter.measures.get("l0", adapter.width)))
        name = key(["pca", train.key, codes.features.key, components])
        found |= once(name, lambda: {"explained_variance_pca": _by_components(codes, rows, components)})
    return found


def _by_components(codes: Codes, rows: TrainingRows, components: int) -> float:
    """The share of the variance of the rows of `codes` that the leading `components` of `rows` explain."""
    pca = build(AdapterSpec(method="pca", params={"components": components})).fit(rows, seed=0)
    return explained_variance(Codes(codes.features, pca, codes.device))


def margins(codes: Codes, rows: Ints, labels: Ints, probes: Probes, member: int) -> dict[str, float]:
    """Median and 5 % quantile of the margins of one probe on `rows` with `labels`, both [n].

    A margin is the true class's logit less the largest other one: negative where the row is classified wrongly,
    so that the share of negative ones is the error.
    """
    parts, at = [], 0
    for chunk in codes.chunks(rows):
        logits_nc = probes.logits(chunk, [member])[:, 0].cpu().numpy()
        parts.append(of_rows(logits_nc, labels[at : at + len(logits_nc)]))
        at += len(logits_nc)
    median, low = margin_quantiles(np.concatenate(parts), (0.5, 0.05))
    return _finite({"margin": float(median), "margin_low": float(low)})


def stability_of(method: str, one: Adapter, other: Adapter) -> dict[str, float]:
    """How alike the dictionaries of two seeds are; empty where they have none, or of unequal shapes."""
    a_md, b_md = one.directions, other.directions
    if a_md is None or b_md is None or a_md.shape != b_md.shape:
        return {}
    found = stability(a_md, b_md, either_sign=method in {"pca", "ica"})
    return {
        "stability": found.cosine,
        "stability_chance": found.chance,
        "stability_exact": float(found.exact),
    }


def moved(clean: Codes, changed: Codes) -> dict[str, float]:
    """How far a change to the images moves their codes."""
    return _finite(asdict(drift(clean, changed)))


def _finite(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if np.isfinite(value)}
