"""What is said of an adapter beside its scores: measures of its codes, of its probe's margins, of drift."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from monoeval.adapters.base import Codes
from monoeval.data.images import ImageSet, Ints
from monoeval.metrics.dictionary import coherence
from monoeval.metrics.drift import drift
from monoeval.metrics.latents import measure
from monoeval.metrics.separation import margin_quantiles, scatter_ratio
from monoeval.metrics.separation import margins as of_rows
from monoeval.probes.problem import Probes

KEPT = 256
"""Measures of this many codes are kept: groups that differ in their draw alone ask for the same ones."""
_found: dict[str, dict[str, float]] = {}


def once(key: str, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `make` gives, made once in a process for each key; the oldest are forgotten."""
    if key not in _found:
        made = make()
        while len(_found) >= KEPT:
            del _found[next(iter(_found))]
        _found[key] = made
    return _found[key]


def held_out(codes: Codes, images: ImageSet) -> dict[str, float]:
    """Measures of the codes of clean test images, but for undefined ones."""
    n_classes = len(images.class_names)
    found = measure(codes, images.labels, n_classes).summary()
    found["scatter_ratio"] = scatter_ratio(codes, images.labels, n_classes)
    directions = codes.adapter.directions
    if directions is not None:
        found["coherence"] = coherence(directions).mean
    return _finite(found)


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


def moved(clean: Codes, changed: Codes) -> dict[str, float]:
    """How far a change to the images moves their codes."""
    return _finite(asdict(drift(clean, changed)))


def _finite(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if np.isfinite(value)}
