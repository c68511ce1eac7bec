"""Calibration against hand-worked bins, scipy's optimiser and planted temperatures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from monoeval.errors import MonoevalError
from monoeval.metrics.calibration import (
    TEMPERATURES,
    calibration,
    expected_calibration_error,
    scaled_confidence,
    temperature,
    tempered,
)
from monoeval.metrics.scores import RowScores, row_scores


def made(n: int, c: int, spread: float, sharpen: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are calibrated but for being `sharpen` times too large, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, c)) * spread
    labels = (softmax(logits, 1).cumsum(1) > rng.uniform(size=(n, 1))).argmax(1)
    return (logits * sharpen).astype(np.float32), labels


def calibrated(scores: RowScores, labels: np.ndarray, fold: np.ndarray) -> dict[str, float]:
    right = scores.prediction == labels
    return calibration(scores.log_loss, scores.max_softmax, right, scores.tempered, fold)


def test_bins_by_hand():
    # (0, 0.5] has 0.4 and 0.5, one of them right: |1 − 0.9| / 4; (0.5, 1] has 0.6 and 1, both: |2 − 1.6| / 4
    confidence, correct = np.array([0.4, 0.5, 0.6, 1.0]), np.array([True, False, True, True])
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx((0.1 + 0.4) / 4)
    assert np.isnan(expected_calibration_error(np.empty(0), np.empty(0, dtype=bool)))


@pytest.mark.parametrize("bins", [1, 15])
def test_against_the_textbook_loop(bins: int):
    rng = np.random.default_rng(1)
    confidence, correct = rng.uniform(0.1, 1, 400), rng.uniform(size=400) < 0.6
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(total)


def test_the_stated_bias_of_a_calibrated_classifier():
    rng = np.random.default_rng(2)
    p = np.array([0.3, 0.62, 0.9])  # three bins of 200 rows each
    stated = np.sqrt(2 * p * (1 - p) * 200 / np.pi).sum() / 600
    confidence = np.repeat(p, 200)
    found = [expected_calibration_error(confidence, rng.uniform(size=600) < confidence) for _ in range(400)]
    assert np.mean(found) == pytest.approx(stated, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.floats(0.05, 30))
def test_sums_and_confidence_at_any_temperature(seed: int, c: int, scale: float):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(40, c)) * scale
    logits[:, 0] = -np.inf
    kept = tempered(logits)
    exact = [logsumexp((logits - logits.max(1, keepdims=True)) / t, axis=1) for t in TEMPERATURES]
    np.testing.assert_allclose(kept, np.stack(exact, 1), atol=2e-6, rtol=1e-5)
    at = float(2.0 ** rng.uniform(-6, 6))
    assert np.abs(scaled_confidence(kept, at) - softmax(logits / at, 1).max(1)).max() < 0.003


@pytest.mark.parametrize("sharpen", [0.2, 1.0, 3.0, 20.0])
def test_the_temperature_is_that_of_the_smallest_log_loss(sharpen: float):
    logits, labels = made(3000, 6, 2.0, sharpen)
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        return -log_softmax(logits / np.exp(log_t), 1)[rows, labels].mean()

    best = float(np.exp(minimize_scalar(loss, bounds=(-4, 4)).x))
    margin = logits.max(1) - logits[rows, labels]
    assert temperature(tempered(logits), margin) == pytest.approx(best, rel=0.012)


def test_scaling_mends_what_is_only_too_sure():
    logits, labels = made(6000, 5, 1.5, 4.0)
    scores = row_scores(logits, labels)
    fold = np.random.default_rng(3).uniform(size=len(labels)) < 0.5
    found = calibrated(scores, labels, fold)
    assert found["temperature"] == pytest.approx(4, rel=0.1)
    assert found["ece"] > 0.2
    assert found["ece_t"] < 0.03


def test_each_half_is_scaled_by_the_temperature_of_the_other():
    sure, labels = made(2000, 4, 1.5, 5.0)
    unsure, other = made(2000, 4, 1.5, 0.5, seed=1)
    logits, labels = np.concatenate([sure, unsure]), np.concatenate([labels, other])
    scores, fold = row_scores(logits, labels), np.arange(4000) < 2000
    found = calibrated(scores, labels, fold)
    crossed = np.concatenate([softmax(sure / 0.5, 1).max(1), softmax(unsure / 5.0, 1).max(1)])
    wrong = expected_calibration_error(crossed, scores.prediction == labels)
    assert found["ece_t"] == pytest.approx(wrong, abs=0.02)
    assert found["ece_t"] > found["ece"]


def test_rows_that_cannot_be_right_do_not_decide_the_temperature():
    logits, labels = made(1000, 4, 1.5, 2.0)
    margin = logits.max(1) - logits[np.arange(1000), labels]
    kept = tempered(logits)
    with_lost = temperature(np.concatenate([kept, kept[:50]]), np.concatenate([margin, np.full(50, np.inf)]))
    assert with_lost == temperature(kept, margin)
    assert temperature(kept[:3], np.full(3, np.inf)) == 1.0
    one = row_scores(logits[:1], labels[:1])
    assert np.isfinite(list(calibrated(one, labels[:1], np.array([True])).values())).all()


def test_a_temperature_outside_the_grid_is_refused():
    with pytest.raises(MonoevalError, match="outside"):
        scaled_confidence(tempered(np.zeros((1, 2))), 200.0)
