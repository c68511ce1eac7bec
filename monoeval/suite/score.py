"""What every learner gives: rows of the ledger with the predictions they summarise."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from monoeval.backbones.load import Backbone
from monoeval.data.corruptions import corruption_table
from monoeval.data.images import Ints
from monoeval.data.label_noise import Transitions, label_signal
from monoeval.keys import draw_seed
from monoeval.metrics.calibration import calibration
from monoeval.metrics.detection import detection
from monoeval.metrics.scores import RowScores, row_scores
from monoeval.probes.problem import Choice
from monoeval.scenarios.trial import TestSet, Trial
from monoeval.suite.ledger import Predictions, Row
from monoeval.suite.plan import Group, described
from monoeval.suite.trial_rows import load, test_images, tested_rows, transitions


@dataclass(frozen=True)
class Score:
    """A row of the ledger with what its sidecars need."""

    row: Row
    trial: Trial
    predictions: Predictions | None


def predicted(logits_nc: NDArray[np.floating], labels_n: Ints, counts_as: Ints) -> tuple[RowScores, int]:
    """Scores of some rows, and how many of them have logits that are not numbers.

    `counts_as` [C] is as `plan.counts_as` gives it; −1 cannot be predicted. Where classes count as one, the
    prediction is what the single class with the largest logit counts as, so that either is a right answer, as
    published accuracies have it; probabilities (log-loss, confidence, energy) are summed over them. Logits are
    overwritten.
    """
    classes = np.arange(len(counts_as))
    logits_nc[:, counts_as < 0] = -np.inf
    merged = np.unique(counts_as[(counts_as >= 0) & (counts_as != classes)])
    largest_n = counts_as[logits_nc.argmax(axis=1)] if len(merged) else None
    for one in merged:
        logits_nc[:, one] = logsumexp(logits_nc[:, counts_as == one], axis=1)
    logits_nc[:, np.setdiff1d(classes, counts_as)] = -np.inf
    bad = np.isnan(logits_nc).any(axis=1)
    made = row_scores(np.where(bad[:, None], 0, logits_nc), labels_n)
    if largest_n is not None:
        made = replace(made, prediction=largest_n.astype(np.int32))
    return made, int(bad.sum())


def joined(parts: list[RowScores]) -> Predictions:
    """Scores of rows that were made in parts, at least one."""
    return Predictions(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(RowScores)})


def row_of(group: Group, position: int, backbone: Backbone, probe: Choice, report: dict[str, float]) -> Row:
    """The row of a trial before it is scored; `report` is what is measured of the adapter."""
    trial = group.trials[position]
    noisy = transitions(trial)
    return Row(
        **described(group, position),
        model=backbone.name,
        precision=backbone.precision,
        protocol=_protocol(trial, backbone.preprocess.image_size),
        label_signal=_signal(trial, noisy) if trial.scenario == "label-noise" else None,
        realised_rate=None if noisy is None else noisy.rate,
        l2=probe.l2,
        l2_at_edge=probe.at_edge,
        converged=probe.converged,
        probe=dict(probe.measures),
        adapter=report,
    )


def _signal(trial: Trial, noisy: Transitions | None) -> float:
    noise = trial.fit.labels
    if noise is None or noisy is None:
        return 1.0
    if noise.kind == "instance" or noise.kind == "human":
        return noisy.signal
    return label_signal(noise.rate, len(load(trial.data).train.class_names), noise.kind)


def _protocol(trial: Trial, size: int) -> str:
    if "/onthefly/" not in trial.protocol:
        return trial.protocol
    return trial.protocol.replace("/onthefly/", f"/{corruption_table(size)}.onthefly/") + f"/{size}"


def scored(row: Row, trial: Trial, predictions: Predictions, broken: int, labels: Ints) -> Score:
    """`row` with the outcome of its predictions, of which `broken` rows have logits that are not numbers."""
    if not len(labels):
        return Score(row.model_copy(update={"status": "empty", "error": "no test row was scored"}), trial, None)
    if broken:
        error = f"{broken} of {len(labels)} test rows have scores that are not numbers"
        return Score(row.model_copy(update={"status": "nan", "error": error}), trial, None)
    if trial.test.outside:  # of no class, so nothing here is right or wrong
        return Score(row.model_copy(update={"rows": len(labels)}), trial, predictions)
    correct = predictions.prediction == labels
    outcome: dict[str, object] = {
        "rows": len(labels),
        "accuracy": float(correct.mean()),
        "log_loss": float(predictions.log_loss.mean(dtype=np.float64)),
    }
    if predictions.tempered is not None:
        fold = _halves(trial.test.model_copy(update={"transform": None}).model_dump_json())[tested_rows(trial)[0]]
        outcome["measures"] = row.measures | calibration(
            predictions.log_loss, predictions.max_softmax, correct, predictions.tempered, fold
        )
    return Score(row.model_copy(update=outcome), trial, predictions)


def finished(done: Mapping[int, Score], started: float) -> list[Score]:
    """The scores of a group by their place in it, in order, with their share of the time since `started`."""
    seconds = (time.perf_counter() - started) / len(done)
    return [
        replace(score, row=score.row.model_copy(update={"seconds": seconds}))
        for score in told_apart([done[place] for place in range(len(done))])
    ]


def told_apart(scores: Sequence[Score]) -> list[Score]:
    """`scores` with measures of how well rows of elsewhere are told from those of the data, where both are."""
    inside = {_sides(s.trial): s.predictions for s in scores if s.trial.detection and not s.trial.test.outside}

    def measured(score: Score) -> Score:
        within, beyond = inside.get(_sides(score.trial)), score.predictions
        if score.trial.detection is None or not score.trial.test.outside or within is None or beyond is None:
            return score
        sides = ({n: v for n, v in vars(side).items() if v is not None} for side in (within, beyond))
        found = detection(next(sides), next(sides), score.trial.detection.positive)
        return replace(score, row=score.row.model_copy(update={"measures": {**score.row.measures, **found}}))

    return [measured(score) for score in scores]


def _sides(trial: Trial) -> str:
    """Equal for the two trials whose rows are told apart."""
    return trial.model_copy(update={"test": TestSet(data=trial.data), "level": 0.0}).model_dump_json()


@lru_cache(maxsize=16)
def _halves(test_json: str) -> NDArray[np.bool_]:
    """Which half [N] of a test set's images each is in when a temperature is cross-fitted: by its id alone."""
    ids = test_images(TestSet.model_validate_json(test_json)).ids
    return np.array([draw_seed("temperature", str(i)) % 2 == 0 for i in ids], dtype=np.bool_)
