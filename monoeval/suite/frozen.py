"""The frozen learner: cached features → adapter codes → batched probes → scores.

A learner turns a group of trials into scores and writes nothing but the cache, so it can run on another machine
than the ledger's one writer.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from monoeval.adapters.base import Codes, SparseRows
from monoeval.adapters.store import fit_cached
from monoeval.backbones.extract import extract
from monoeval.backbones.features import FeatureSet
from monoeval.backbones.load import Backbone, choose_device, load_backbone
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import Ints, Transform
from monoeval.data.label_noise import label_signal, realised
from monoeval.data.transforms import corruption_table
from monoeval.errors import MonoevalError
from monoeval.keys import key
from monoeval.metrics.scores import RowScores, row_scores
from monoeval.probes.problem import FittedProbe, Problem
from monoeval.probes.select import fit_probes
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.suite.ledger import Predictions, Row
from monoeval.suite.plan import (
    Group,
    backbone_identity,
    described,
    fitted_rows,
    load,
    scored_classes,
    test_images,
    tested_rows,
)
from monoeval.training.pretrain import pretrain


@dataclass(frozen=True)
class Score:
    """A row of the ledger with what its sidecars need."""

    row: Row
    trial: Trial
    predictions: Predictions | None


def score(group: Group, device: str) -> list[Score]:
    """Make every score of `group`, in the order of its trials."""
    started = time.perf_counter()
    backbone, identity_key = _backbone(group, device)
    train = load(group.data).train
    features = extract(backbone, identity_key, train, [None])[0]
    adapter = fit_cached(group.arm.adapter, features, None, seed=group.adapter_seed, device=backbone.device)
    codes = Codes(features, adapter, backbone.device)
    scale = _scale(codes)

    fits = list(dict.fromkeys(trial.fit.model_dump_json() for trial in group.trials))
    problems = [_problem(next(t for t in group.trials if t.fit.model_dump_json() == fit)) for fit in fits]
    probes = fit_probes(_for_probes(codes.dense()).div_(scale), problems, len(train.class_names), group.probe)
    probe_of = dict(zip(fits, probes, strict=True))

    by_test: dict[str, list[int]] = defaultdict(list)
    for position, trial in enumerate(group.trials):
        by_test[trial.test.model_dump_json()].append(position)
    tests = _test_features(group, backbone, identity_key)
    done: dict[int, Score] = {}
    for positions in by_test.values():
        first = group.trials[positions[0]]
        rows, labels = tested_rows(first)
        test_codes = Codes(tests[_features_of(first)], adapter, backbone.device)
        some = [probe_of[group.trials[p].fit.model_dump_json()] for p in positions]
        outcomes = _predict(test_codes, rows, labels, some, scale, scored_classes(first))
        for position, probe, (predictions, broken) in zip(positions, some, outcomes, strict=True):
            row = _row(group, position, backbone, probe, adapter.report())
            done[position] = _scored(row, group.trials[position], predictions, broken, labels)
    seconds = (time.perf_counter() - started) / len(group.trials)
    return [
        Score(s.row.model_copy(update={"seconds": seconds}), s.trial, s.predictions)
        for s in (done[i] for i in range(len(group.trials)))
    ]


@lru_cache(maxsize=1)
def _loaded(spec_json: str, device: str) -> Backbone:
    return load_backbone(BackboneSpec.model_validate_json(spec_json), device=device)


def _backbone(group: Group, device: str) -> tuple[Backbone, str]:
    """The group's backbone, pretrained first where the recipe says so, and the key of its identity."""
    data = group.data
    spec = group.backbone
    identity_key = key(backbone_identity(spec, group.backbone_seed, data))
    if spec.pretrain is not None:
        folder = pretrain(
            spec.pretrain, load(data).train, seed=group.backbone_seed or 0, device=choose_device(device)
        )
        spec = spec.model_copy(update={"model": str(folder), "pretrain": None})
    return _loaded(spec.model_dump_json(), device), identity_key


def _features_of(trial: Trial) -> tuple[str, str]:
    """What test features are called for: the images and the change to them."""
    transform = trial.test.transform
    images = trial.test.model_copy(update={"transform": None, "shared_with": None})
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


def _for_probes(codes: Tensor) -> Tensor:
    """Where probes are fitted: they need float64 sums, which MPS does not have."""
    return codes.cpu() if codes.device.type == "mps" else codes


def _scale(codes: Codes) -> float:
    """Root-mean-square norm of the centred training codes, in float64: one L2 grid then fits every arm."""
    total = _for_probes(torch.zeros(codes.width, device=codes.device)).double()
    squares = total.new_zeros(())
    for chunk in codes.chunks():
        if isinstance(chunk, SparseRows):
            values = _for_probes(chunk.values).double()
            total.scatter_add_(0, _for_probes(chunk.indices).flatten(), values.flatten())
        else:
            values = _for_probes(chunk).double()
            total += values.sum(0)
        squares += values.square().sum()
    n = len(codes)
    variance = float(squares / n - (total / n).square().sum())
    if not np.isfinite(variance):
        raise MonoevalError(f"The codes of {codes.adapter.method} are not finite: check the backbone's features.")
    if variance <= 1e-12 * float(squares / n):
        raise MonoevalError(
            f"The codes of {codes.adapter.method} are the same for every image: nothing can be learned from them."
        )
    return float(np.sqrt(variance))


def _problem(trial: Trial) -> Problem:
    train = load(trial.data).train
    rows, labels, validation = fitted_rows(trial.fit, load(trial.data))
    return Problem(
        rows=rows,
        labels=labels[rows],
        validation_rows=validation,
        validation_labels=None if validation is None else labels[validation],
        groups=None if train.groups is None else train.groups[rows],
    )


def _predict(
    codes: Codes, rows: Ints, labels: Ints, probes: Sequence[FittedProbe], scale: float, scored: Ints
) -> list[tuple[Predictions, int]]:
    """The predictions [n] of each probe, and how many rows have scores that are not numbers.

    Only the classes `scored` can be predicted. Logits are dropped chunk by chunk: those of all probes for all rows
    would be the largest thing in memory.
    """
    weights_km = torch.cat([p.weights_cm for p in probes]) / scale
    intercept_k = torch.cat([p.intercept_c for p in probes])
    width = len(probes[0].intercept_c)
    others = np.setdiff1d(np.arange(width), scored)
    parts: list[list[RowScores]] = [[row_scores(np.empty((0, width)), labels[:0])] for _ in probes]
    broken = [0] * len(probes)
    at = 0
    for chunk in codes.chunks(rows):
        dense = chunk.dense() if isinstance(chunk, SparseRows) else chunk
        logits_nk = (_for_probes(dense) @ weights_km.T + intercept_k).cpu().numpy()
        true = labels[at : at + len(logits_nk)]
        at += len(true)
        for p in range(len(probes)):
            logits_nc = logits_nk[:, p * width : (p + 1) * width]
            logits_nc[:, others] = -np.inf
            bad = np.isnan(logits_nc).any(axis=1)
            broken[p] += int(bad.sum())
            parts[p].append(row_scores(np.where(bad[:, None], 0, logits_nc), true))
    return [(_joined(some), bad) for some, bad in zip(parts, broken, strict=True)]


def _joined(parts: list[RowScores]) -> Predictions:
    return Predictions(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(RowScores)})


def _row(group: Group, position: int, backbone: Backbone, probe: FittedProbe, report: dict[str, float]) -> Row:
    trial = group.trials[position]
    train = load(trial.data).train
    noise, rate = trial.fit.labels, None
    if noise is not None:
        rows, labels, _ = fitted_rows(trial.fit, load(trial.data))
        rate = realised(train.labels[rows], labels[rows], len(train.class_names))[0]
    return Row(
        **described(group, position),
        model=backbone.name,
        precision=backbone.precision,
        protocol=_protocol(trial, backbone.preprocess.image_size),
        label_signal=label_signal(noise.rate if noise else 0.0, len(train.class_names))
        if trial.scenario == "label-noise"
        else None,
        realised_rate=rate,
        l2=probe.l2,
        l2_at_edge=probe.at_edge,
        converged=probe.converged,
        adapter=report,
    )


def _protocol(trial: Trial, size: int) -> str:
    if trial.scenario != "corruption":
        return trial.protocol
    return trial.protocol.replace("/onthefly/", f"/{corruption_table(size)}.onthefly/") + f"/{size}"


def _scored(row: Row, trial: Trial, predictions: Predictions, broken: int, labels: Ints) -> Score:
    if not len(labels):
        return Score(row.model_copy(update={"status": "empty", "error": "no test row was scored"}), trial, None)
    if broken:
        error = f"{broken} of {len(labels)} test rows have scores that are not numbers"
        return Score(row.model_copy(update={"status": "nan", "error": error}), trial, None)
    outcome = {
        "rows": len(labels),
        "accuracy": float((predictions.prediction == labels).mean()),
        "log_loss": float(predictions.log_loss.mean(dtype=np.float64)),
    }
    return Score(row.model_copy(update=outcome), trial, predictions)
