"""The frozen learner: cached features → adapter codes → batched probes → scores.

A learner turns a group of trials into scores and writes nothing but the cache, so it can run on another machine
than the ledger's one writer.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from typing import Any

import numpy as np

from monoeval.adapters.base import Adapter, Codes, SparseRows
from monoeval.adapters.learned import WHOLE
from monoeval.adapters.registry import build, n_views
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import fit_cached
from monoeval.adapters.subset import Subset
from monoeval.backbones.extract import extract
from monoeval.backbones.features import FeatureSet
from monoeval.backbones.load import Backbone, choose_device, load_backbone
from monoeval.backbones.resolve import identity, same_network
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import DataSpec, Ints, Transform
from monoeval.data.transforms import views
from monoeval.errors import MonoevalError, UsageError
from monoeval.keys import key
from monoeval.metrics.latents import choose_latents, measure
from monoeval.metrics.scores import RowScores, row_scores
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.neighbours import distances_to_neighbour
from monoeval.probes.problem import Probes, Problem
from monoeval.probes.spec import Paper, Tuned
from monoeval.probes.sweep import best_candidate
from monoeval.scenarios.trial import Fit, TestSet, Trial
from monoeval.suite.ledger import Predictions
from monoeval.suite.measures import explained, held_out, margins, moved, once, stability_of
from monoeval.suite.plan import Group, backbone_identity, codes_identity
from monoeval.suite.score import Score, finished, joined, predicted, row_of, scored
from monoeval.suite.trial_rows import counts_as, fitted_rows, load, test_images, tested_rows
from monoeval.training.pretrain import pretrain

log = logging.getLogger("monoeval")

UNMEASURED = (MonoevalError, TypeError)
"""What measures raise of codes that are not finite, and torch of sums in float64 where a device (MPS) has none."""


def score(group: Group, device: str, make_probes: Callable[..., Probes] | None = None) -> list[Score]:
    """Make every score of `group`, in the order of its trials.

    `make_probes` takes the place of `fit_probes`, with its signature, where a learner has its own.
    """
    started = time.perf_counter()
    backbone, identity_key = _backbone(group, device)
    train = load(group.data).train
    changes = views(group.probe.n_views) if isinstance(group.probe, Paper) else []
    seen = extract(backbone, identity_key, train, list(changes)) if changes else []
    specs = _candidates(group, device)

    fits = list(dict.fromkeys(trial.fit.model_dump_json() for trial in group.trials))
    problems = [problem_of(next(t for t in group.trials if t.fit.model_dump_json() == fit)) for fit in fits]
    make = make_probes or partial(fit_probes, judged=len(specs) > 1)
    fitted = [_fit(group, spec, problems, seen, make, device) for spec in specs]
    rule = group.probe.rule if isinstance(group.probe, Tuned) else "min"
    choices = zip(*(candidate.probes.choices for candidate in fitted), strict=True)
    best = [best_candidate(of_one, rule) for of_one in choices]
    probe_of = [fits.index(trial.fit.model_dump_json()) for trial in group.trials]

    by_test: dict[tuple[str, int], list[int]] = defaultdict(list)
    for position, trial in enumerate(group.trials):
        by_test[trial.test.model_dump_json(), best[probe_of[position]]].append(position)
    tests = _test_features(group, backbone, identity_key)
    clean = [i for i, fit in enumerate(fits) if fit == Fit().model_dump_json()]
    reports = {
        c: _report(group, fitted[c], tests, [i for i in clean if best[i] == c], device) for c in sorted(set(best))
    }
    done: dict[int, Score] = {}
    for (_, chosen), positions in by_test.items():
        first, candidate = group.trials[positions[0]], fitted[chosen]
        rows, labels = tested_rows(first)
        codes = candidate.codes(tests[_features_of(first)])
        about = {
            "drift": _drift(first, tests, candidate),
            "tried": len(specs),
            "chosen": _differing(specs, chosen),
        }
        # what several series show, as level 0, is predicted once
        members = list(dict.fromkeys(probe_of[p] for p in positions))
        outcomes = _predict(codes, rows, labels, candidate.probes, members, counts_as(first))
        outcome_of = dict(zip(members, outcomes, strict=True))
        for position in positions:
            trial, probe = group.trials[position], probe_of[position]
            predictions, broken = outcome_of[probe]
            if trial.detection is not None:
                near, k = fitted_rows(trial)[0], trial.detection.neighbours
                distances = distances_to_neighbour(candidate.training, near, codes.chunks(rows), k)
                predictions = replace(predictions, neighbour_distance=distances)
            row = row_of(group, position, backbone, candidate.probes.choices[probe], reports[chosen])
            row = row.model_copy(update=about)
            done[position] = scored(row, trial, predictions, broken, labels)
    return finished(done, started)


def check(groups: Sequence[Group], device: str) -> None:
    """Raise UsageError where settings of an adapter do not fit the width of its backbone's features.

    A backbone that cannot be loaded is told where it is scored.
    """
    for group in {group.arm.name: group for group in groups}.values():
        # defaults fit any width; that of a network which is yet to be pretrained is not known
        given = [spec for spec in group.arm.adapter.candidates if spec.params]
        if not given or group.arm.learner != "frozen" or group.match or group.backbone.pretrain:
            continue
        try:
            width = _backbone(group, device)[0].width
        except UsageError:
            raise
        except Exception:
            continue
        for spec in given:
            try:
                build(spec).check_width(width)
            except UsageError as error:
                raise UsageError(f"{group.arm.backbone}: {error}") from None


@dataclass(frozen=True)
class _Fitted:
    """One adapter that a group may use, and the probes on its codes."""

    spec: AdapterSpec
    train: Codes
    probes: Probes

    @property
    def adapter(self) -> Adapter:
        return self.train.adapter

    def codes(self, features: FeatureSet) -> Codes:
        return Codes(features, self.adapter, self.train.device)

    @cached_property
    def training(self) -> TrainingCodes:
        """What the probes were fitted on, encoded again: those of all candidates at once would fill the memory."""
        return TrainingCodes.of(self.train)


def _candidates(group: Group, device: str) -> list[AdapterSpec]:
    """The adapters that a group chooses from, with the sizes of the arm that it matches."""
    own = group.arm.adapter.candidates
    if group.match is None:
        return list(own)
    others = [_codes(group.match, spec, device) for spec in group.match.arm.adapter.candidates]
    return [_matching(spec, other) for other in others for spec in own]


def _fit(
    group: Group,
    spec: AdapterSpec,
    problems: Sequence[Problem],
    seen: Sequence[FeatureSet],
    make_probes: Callable[..., Probes],
    device: str,
) -> _Fitted:
    """Fit the adapter that `spec` names, and a probe for each problem; `seen` are views that probes learn from."""
    codes = _codes(group, spec, device)
    train, adapter = load(group.data).train, codes.adapter
    n_classes = len(train.class_names)
    if group.arm.latents is not None:
        # by the clean labels, whatever labels the probes are given: the question is what such latents are worth
        latents = measure(codes, train.labels, n_classes)
        adapter = Subset(adapter, choose_latents(latents, group.arm.latents, seed=group.adapter_seed or 0))
        codes = Codes(codes.features, adapter, codes.device)
    of_views = [TrainingCodes(Codes(view, adapter, codes.device)) for view in seen]
    probes = make_probes(TrainingCodes.of(codes), problems, n_classes, group.probe, views=of_views)
    return _Fitted(spec, codes, probes)


def _codes(group: Group, spec: AdapterSpec, device: str) -> Codes:
    """The training codes of the group's images by the adapter `spec`."""
    backbone, identity_key = _backbone(group, device)
    wanted = [None, *views(n_views(spec))]
    features, *seen = extract(backbone, identity_key, load(group.data).train, wanted)
    # what the study will ask for on these features besides
    also = [] if group.match else [(s, seed) for s in group.arm.adapter.candidates for seed in group.adapter_seeds]
    adapter = fit_cached(
        spec, features, None, seed=group.adapter_seed, device=backbone.device, views=seen, also=also
    )
    return Codes(features, adapter, backbone.device)


def _matching(spec: AdapterSpec, other: Codes) -> AdapterSpec:
    """`spec` with the width of other codes and their mean number of active latents a row."""
    active = sum(int(((c.values if isinstance(c, SparseRows) else c) != 0).sum()) for c in other.chunks())
    sizes = {"width": other.width, "k": max(1, round(active / len(other)))}
    return spec.model_copy(update={"params": {**spec.params, **sizes}})


def _differing(specs: Sequence[AdapterSpec], chosen: int) -> dict[str, Any]:
    """The settings that are not the same for all candidates, as the chosen one has them."""
    return {n: v for n, v in specs[chosen].params.items() if any(spec.params.get(n) != v for spec in specs)}


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
    setting = f"batch_size: {{}} under pretrain of {group.arm.backbone} in the recipe"
    folder = pretrain(spec.pretrain, train, seed=seed, device=choose_device(device), batch_option=setting)
    return spec.model_copy(update={"model": str(folder), "pretrain": None})


def backbone_of(spec: BackboneSpec, device: str) -> Backbone:
    """The frozen backbone, loaded once for groups that follow each other."""
    return _loaded(spec.model_dump_json(), device)


def _embedded(group: Group, device: str) -> FeatureSet | None:
    """The test images as the reference sees them, where there is one."""
    if group.reference is None:
        return None
    if group.backbone.pretrain is not None and same_network(group.reference, located(group, device)):
        _say_no_reference(f"{group.reference.model} is {group.arm.backbone} itself, as it was pretrained")
        return None
    return _references(group.reference.model_dump_json(), group.data.model_dump_json(), device)


@lru_cache(maxsize=4)
def _references(spec_json: str, data_json: str, device: str) -> FeatureSet | None:
    spec, data = BackboneSpec.model_validate_json(spec_json), DataSpec.model_validate_json(data_json)
    try:
        embeddings = extract(load_backbone(spec, device=device), key(identity(spec)), load(data).test, [None])[0]
    except MonoevalError as error:
        _say_no_reference(f"{spec.model} cannot judge ({str(error).rstrip('.')})")
        return None
    alike = int((embeddings.load() == 0).all(dim=1).sum())
    if alike:
        _say_no_reference(f"{spec.model} embeds {alike:,} of {embeddings.n:,} test images as zeros")
        return None
    return embeddings


@cache
def _say_no_reference(why: str) -> None:
    """Said once: other measures are made all the same."""
    log.warning("The reference %s, so no monosemanticity score is told.", why)


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


def _report(
    group: Group, candidate: _Fitted, tests: dict[tuple[str, str], FeatureSet], clean_fit: list[int], device: str
) -> dict[str, float]:
    """Measures of the adapter's fit, and of its codes on the clean test images where the group scores those.

    `clean_fit` names the probe on all clean training rows, where there is one that uses this candidate.
    """
    report = candidate.adapter.report()
    clean = Trial(scenario="", protocol="", series="", level=0, data=group.data, test=TestSet(data=group.data))
    features, images = tests.get(_features_of(clean)), load(group.data).test
    own = codes_identity(group, candidate.spec), load(group.data).train.fingerprint, group.arm.latents
    try:
        if features is not None:
            codes = candidate.codes(features)
            report |= _explained(group, candidate, features)
            reference = _embedded(group, device)
            names = [*own, features.key, reference and reference.key]
            report |= once(key(["held out", *names]), lambda: held_out(codes, images, reference))
            for probe in clean_fit:
                report |= margins(codes, *tested_rows(clean), candidate.probes, probe)
        if group.match is None:  # else the seed before took another width and k
            report |= once(key(["stability", *own]), lambda: _stability(group, candidate, device))
    except UNMEASURED as error:  # a measure that cannot be made takes no score with it
        log.warning("%s is not measured: %s", group.arm.name, error)
    return report


def _explained(group: Group, candidate: _Fitted, features: FeatureSet) -> dict[str, float]:
    """`measures.explained` of the whole adapter; of some of its latents it is known to be of the whole."""
    adapter = candidate.adapter
    whole = Codes(features, adapter.whole if isinstance(adapter, Subset) else adapter, candidate.train.device)
    own = codes_identity(group, candidate.spec), load(group.data).train.fingerprint
    found = once(
        key(["explained", *own, features.key]),
        lambda: explained(whole, candidate.train.features, group.adapter_seed),
    )
    return {f"{WHOLE}{name}": value for name, value in found.items()} if whole.adapter is not adapter else found


def _stability(group: Group, candidate: _Fitted, device: str) -> dict[str, float]:
    """How alike the adapter is to that of the seed before, where both saw the same features and have a decoder."""
    if not group.adapter_seed or group.backbone_seed is not None or candidate.adapter.directions is None:
        return {}
    before = group.model_copy(update={"adapter_seed": group.adapter_seed - 1})
    return stability_of(candidate.spec.method, candidate.adapter, _codes(before, candidate.spec, device).adapter)


def _drift(trial: Trial, tests: dict[tuple[str, str], FeatureSet], candidate: _Fitted) -> dict[str, float]:
    """How far the trial's change to the images moves their codes, where both are there."""
    unchanged = trial.test.model_copy(update={"transform": None, "official": None})
    before = _features_of(trial.model_copy(update={"test": unchanged}))
    clean = tests.get(before)
    if clean is None or before == _features_of(trial):
        return {}
    try:
        return moved(candidate.codes(clean), candidate.codes(tests[_features_of(trial)]))
    except UNMEASURED:
        return {}


def problem_of(trial: Trial) -> Problem:
    """What the trial fits, by rows of the training images."""
    train = load(trial.data).train
    rows, labels, validation = fitted_rows(trial)
    noise = trial.fit.labels
    judged = train.labels if noise is not None and noise.select_on == "clean-val" else labels
    return Problem(
        rows=rows,
        labels=labels[rows],
        selection_labels=None if judged is labels else judged[rows],
        validation_rows=validation,
        validation_labels=None if validation is None else judged[validation],
        groups=None if train.groups is None else train.groups[rows],
    )


def _predict(
    codes: Codes, rows: Ints, labels: Ints, probes: Probes, members: Sequence[int], counts: Ints
) -> list[tuple[Predictions, int]]:
    """The predictions [n] of some of the probes, and how many rows have scores that are not numbers.

    `counts` is what each class counts as (`plan.counts_as`). Logits are dropped chunk by chunk: those of all
    probes for all rows would be the largest thing in memory.
    """
    parts: list[list[RowScores]] = [[] for _ in members]
    broken = [0] * len(members)
    at = 0
    for chunk in codes.chunks(rows):
        logits_npc = probes.logits(chunk, members).cpu().numpy()
        true = labels[at : at + len(logits_npc)]
        at += len(true)
        for p in range(len(members)):
            made, bad = predicted(logits_npc[:, p], true, counts)
            broken[p] += bad
            parts[p].append(made)
    empty = [row_scores(np.empty((0, 2)), labels[:0])]
    return [(joined(some or empty), bad) for some, bad in zip(parts, broken, strict=True)]
