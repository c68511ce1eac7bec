"""What every learner gives: rows of the ledger with the predictions they summarise."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from monoeval.backbones.load import Backbone
from monoeval.data.images import Ints
from monoeval.data.label_noise import label_signal, realised
from monoeval.data.transforms import corruption_table
from monoeval.metrics.scores import RowScores, row_scores
from monoeval.probes.problem import Choice
from monoeval.scenarios.trial import Trial
from monoeval.suite.ledger import Predictions, Row
from monoeval.suite.plan import Group, described, fitted_rows, load


@dataclass(frozen=True)
class Score:
    """A row of the ledger with what its sidecars need."""

    row: Row
    trial: Trial
    predictions: Predictions | None


def predicted(logits_nc: NDArray[np.floating], labels_n: Ints, scored_classes: Ints) -> tuple[RowScores, int]:
    """Scores of some rows, and how many of them have logits that are not numbers.

    Only `scored_classes` can be predicted; the other logits are overwritten.
    """
    logits_nc[:, np.setdiff1d(np.arange(logits_nc.shape[1]), scored_classes)] = -np.inf
    bad = np.isnan(logits_nc).any(axis=1)
    return row_scores(np.where(bad[:, None], 0, logits_nc), labels_n), int(bad.sum())


def joined(parts: list[RowScores]) -> Predictions:
    """Scores of rows that were made in parts, at least one."""
    return Predictions(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(RowScores)})


def row_of(group: Group, position: int, backbone: Backbone, probe: Choice, report: dict[str, float]) -> Row:
    """The row of a trial before it is scored; `report` is what is measured of the adapter."""
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
        probe=dict(probe.measures),
        adapter=report,
    )


def _protocol(trial: Trial, size: int) -> str:
    if trial.scenario != "corruption":
        return trial.protocol
    return trial.protocol.replace("/onthefly/", f"/{corruption_table(size)}.onthefly/") + f"/{size}"


def scored(row: Row, trial: Trial, predictions: Predictions, broken: int, labels: Ints) -> Score:
    """`row` with the outcome of its predictions, of which `broken` rows have logits that are not numbers."""
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
