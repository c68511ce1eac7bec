"""The frozen learner: cached features → adapter codes → batched probes → scores.

A learner turns a group of trials into scores and writes nothing but the cache, so it can run on another machine
than the ledger's one writer.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np

from monoeval.adapters.base import Adapter, Codes, SparseRows
from monoeval.adapters.registry import n_views
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import fit_cached
from monoeval.adapters.subset import Subset
from monoeval.backbones.extract import extract
from monoeval.backbones.features import FeatureSet
from monoeval.backbones.load import Backbone, choose_device, load_backbone
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import Ints, Transform
from monoeval.data.transforms import views
from monoeval.errors import MonoevalError
from monoeval.keys import key
from monoeval.metrics.dictionary import coherence, stability
from monoeval.metrics.drift import drift
from monoeval.metrics.latents import choose_latents, measure
from monoeval.metrics.scores import RowScores, row_scores
from monoeval.metrics.separation import scatter_ratio
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.neighbours import distances_to_neighbour
from monoeval.probes.problem import Probes, Problem
from monoeval.probes.spec import Paper
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.suite.ledger import Predictions
from monoeval.suite.plan import (
    Group,
    backbone_identity,
    fitted_rows,
    load,
    scored_classes,
    test_images,
    tested_rows,
)
from monoeval.suite.score import Score, joined, predicted, row_of, scored, told_apart
from monoeval.training.pretrain import pretrain

log = logging.getLogger("monoeval")

UNMEASURED = (MonoevalError, TypeError)
"""What measures raise of codes that are not finite, and torch of sums in float64 where a device (MPS) has none."""


def score(group: Group, device: str, make_probes: Callable[..., Probes] | None = None) -> list[Score]:
    """Make every score of `group`, in the order of its trials.

    `make_probes` takes the place of `fit_probes`, with its signature, where a learner has its own.
    """
    started = time.perf_counter()
    spec = group.arm.adapter
    if group.match is not None:
        spec = _matching(spec, _codes(group.match, group.match.arm.adapter, device)[2])
    backbone, identity_key, codes = _codes(group, spec, device)
    train, adapter = load(group.data).train, codes.adapter
    changes = views(group.probe.n_views) if isinstance(group.probe, Paper) else []
    seen = extract(backbone, identity_key, train, list(changes)) if changes else []
    if group.arm.latents is not None:
        # by the clean labels, whatever labels the probes are given: the question is what such latents are worth
        latents = measure(codes, train.labels, len(train.class_names))
        adapter = Subset(adapter, choose_latents(latents, group.arm.latents, seed=group.adapter_seed or 0))
        codes = Codes(codes.features, adapter, backbone.device)

    fits = list(dict.fromkeys(trial.fit.model_dump_json() for trial in group.trials))
    problems = [problem_of(next(t for t in group.trials if t.fit.model_dump_json() == fit)) for fit in fits]
    training = TrainingCodes.of(codes)
    probes = (make_probes or fit_probes)(
        training,
        problems,
        len(train.class_names),
        group.probe,
        views=[TrainingCodes(Codes(view, adapter, backbone.device)) for view in seen],
    )
    probe_of = {fit: position for position, fit in enumerate(fits)}

    by_test: dict[str, list[int]] = defaultdict(list)
    for position, trial in enumerate(group.trials):
        by_test[trial.test.model_dump_json()].append(position)
    tests = _test_features(group, backbone, identity_key)
    report = adapter.report()
    try:
        report |= _held_out(group, tests, adapter, backbone) | _stability(group, spec, adapter, device)
    except UNMEASURED as error:  # a measure that cannot be made takes no score with it
        log.warning("%s is not measured: %s", group.arm.name, error)
    done: dict[int, Score] = {}
    for positions in by_test.values():
        first = group.trials[positions[0]]
        rows, labels = tested_rows(first)
        test_codes = Codes(tests[_features_of(first)], adapter, backbone.device)
        moved = _drift(first, tests, test_codes)
        some = [probe_of[group.trials[p].fit.model_dump_json()] for p in positions]
        outcomes = _predict(test_codes, rows, labels, probes, some, scored_classes(first))
        for position, probe, (predictions, broken) in zip(positions, some, outcomes, strict=True):
            trial = group.trials[position]
            if trial.detection is not None:
                near, k = fitted_rows(trial)[0], trial.detection.neighbours
                distances = distances_to_neighbour(training, near, test_codes.chunks(rows), k)
                predictions = replace(predictions, neighbour_distance=distances)
            row = row_of(group, position, backbone, probes.choices[probe], report)
            row = row.model_copy(update={"drift": moved})
            done[position] = scored(row, trial, predictions, broken, labels)
    seconds = (time.perf_counter() - started) / len(group.trials)
    return [
        Score(s.row.model_copy(update={"seconds": seconds}), s.trial, s.predictions)
        for s in told_apart([done[i] for i in range(len(group.trials))])
    ]


def _codes(group: Group, spec: AdapterSpec, device: str) -> tuple[Backbone, str, Codes]:
    """The training codes of the group's images by the adapter `spec`, with the backbone and its identity."""
    backbone, identity_key = _backbone(group, device)
    wanted = [None, *views(n_views(spec))]
    features, *seen = extract(backbone, identity_key, load(group.data).train, wanted)
    adapter = fit_cached(spec, features, None, seed=group.adapter_seed, device=backbone.device, views=seen)
    return backbone, identity_key, Codes(features, adapter, backbone.device)


def _matching(spec: AdapterSpec, other: Codes) -> AdapterSpec:
    """`spec` with the width of other codes and their mean number of active latents a row."""
    active = sum(int(((c.values if isinstance(c, SparseRows) else c) != 0).sum()) for c in other.chunks())
    sizes = {"width": other.width, "k": max(1, round(active / len(other)))}
    return spec.model_copy(update={"params": {**spec.params, **sizes}})


@lru_cache(maxsize=1)
def _loaded(spec_json: str, device: str) -> Backbone:
    return load_backbone(BackboneSpec.model_validate_json(spec_json), device=device)


def _backbone(group: Group, device: str) -> tuple[Backbone, str]:
    """The group's backbone and the key of its identity."""
    identity_key = key(backbone_identity(group.backbone, group.backbone_seed, group.data))
    return backbone_of(located(group, device), device), identity_key


def located(group: Group, device: str) -> BackboneSpec:
    """Where the group's backbone is to be had: pretrained first, where the recipe says so."""
    spec = group.backbone
    if spec.pretrain is None:
        return spec
    train, seed = load(group.data).train, group.backbone_seed or 0
    folder = pretrain(spec.pretrain, train, seed=seed, device=choose_device(device))
    return spec.model_copy(update={"model": str(folder), "pretrain": None})


def backbone_of(spec: BackboneSpec, device: str) -> Backbone:
    """The frozen backbone, loaded once for groups that follow each other."""
    return _loaded(spec.model_dump_json(), device)


def _features_of(trial: Trial) -> tuple[str, str]:
    """What test features are called for: the images and the change to them."""
    transform = trial.test.transform
    published = trial.test.official
    if published is not None and published.severity == 0:
        published = None
    images = trial.test.model_copy(update={"transform": None, "shared_with": None, "official": published})
    return images.model_dump_json(), transform.model_dump_json() if transform else ""


def _test_features(group: Group, backbone: Backbone, identity_key: str) -> dict[tuple[str, str], FeatureSet]:
    """Features of every test set of the group, one pass over the images of each data set."""
    transforms: dict[str, dict[str, Transform | None]] = defaultdict(dict)
    for trial in group.trials:
        data, change = _features_of(trial)
        transforms[data][change] = trial.test.transform
    made = {}
    for data, changes in transforms.items():
        images = test_images(TestSet.model_validate_json(data))
        sets = extract(backbone, identity_key, images, list(changes.values()))
        made.update({(data, change): features for change, features in zip(changes, sets, strict=True)})
    return made


def _held_out(
    group: Group, tests: dict[tuple[str, str], FeatureSet], adapter: Adapter, backbone: Backbone
) -> dict[str, float]:
    """Measures of the codes on the clean test images, where the group scores those, but for undefined ones."""
    clean = TestSet(data=group.data)
    features = tests.get((clean.model_dump_json(), ""))
    if features is None:
        return {}
    images, codes = test_images(clean), Codes(features, adapter, backbone.device)
    n_classes = len(images.class_names)
    found = measure(codes, images.labels, n_classes).summary()
    found["scatter_ratio"] = scatter_ratio(codes, images.labels, n_classes)
    if adapter.directions is not None:
        found["coherence"] = coherence(adapter.directions).mean
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _stability(group: Group, spec: AdapterSpec, adapter: Adapter, device: str) -> dict[str, float]:
    """How alike the adapter is to that of the seed before, where both saw the same features and have a decoder."""
    matched = group.match is not None  # the seed before took another width and k
    if matched or not group.adapter_seed or group.backbone_seed is not None or adapter.directions is None:
        return {}
    before = group.model_copy(update={"adapter_seed": group.adapter_seed - 1})
    other = _codes(before, spec, device)[2].adapter.directions
    if other is None or other.shape != adapter.directions.shape:
        return {}
    found = stability(adapter.directions, other, either_sign=spec.method in {"pca", "ica"})
    return {"stability": found.cosine, "stability_chance": found.chance}


def _drift(trial: Trial, tests: dict[tuple[str, str], FeatureSet], codes: Codes) -> dict[str, float]:
    """How far the trial's change to the images moves their codes, where both are there."""
    unchanged = trial.test.model_copy(update={"transform": None, "official": None})
    before = _features_of(trial.model_copy(update={"test": unchanged}))
    clean = tests.get(before)
    if clean is None or before == _features_of(trial):
        return {}
    try:
        found = asdict(drift(Codes(clean, codes.adapter, codes.device), codes))
    except UNMEASURED:
        return {}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def problem_of(trial: Trial) -> Problem:
    """What the trial fits, by rows of the training images."""
    train = load(trial.data).train
    rows, labels, validation = fitted_rows(trial)
    noise = trial.fit.labels
    return Problem(
        rows=rows,
        labels=labels[rows],
        selection_labels=train.labels[rows] if noise is not None and noise.select_on == "clean-val" else None,
        validation_rows=validation,
        validation_labels=None if validation is None else labels[validation],
        groups=None if train.groups is None else train.groups[rows],
    )


def _predict(
    codes: Codes, rows: Ints, labels: Ints, probes: Probes, members: Sequence[int], classes: Ints
) -> list[tuple[Predictions, int]]:
    """The predictions [n] of some of the probes, and how many rows have scores that are not numbers.

    Only `classes` can be predicted. Logits are dropped chunk by chunk: those of all probes for all rows
    would be the largest thing in memory.
    """
    parts: list[list[RowScores]] = [[] for _ in members]
    broken = [0] * len(members)
    at = 0
    for chunk in codes.chunks(rows):
        logits_npc = probes.logits(chunk, members).cpu().numpy()
        true = labels[at : at + len(logits_npc)]
        at += len(true)
        for p in range(len(members)):
            made, bad = predicted(logits_npc[:, p], true, classes)
            broken[p] += bad
            parts[p].append(made)
    empty = [row_scores(np.empty((0, 2)), labels[:0])]
    return [(joined(some or empty), bad) for some, bad in zip(parts, broken, strict=True)]
