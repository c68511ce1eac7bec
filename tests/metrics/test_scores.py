"""Scores against scikit-learn, scipy and numbers worked by hand."""

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from sklearn.metrics import accuracy_score, log_loss

from monoeval.errors import MonoevalError
from monoeval.metrics.scores import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERROR,
    accuracy,
    area_under_levels,
    effective_robustness,
    mean_corruption_error,
    relative_accuracy,
    relative_robustness,
    row_scores,
)


def test_rows_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)).astype(np.float32) * 5, rng.integers(0, 4, 50)
    found = row_scores(logits, labels)
    chance = softmax(logits.astype(float), 1)
    assert found.log_loss.mean() == pytest.approx(log_loss(labels, chance, labels=range(4)), rel=1e-5)
    assert (
        (found.prediction == labels).mean() == accuracy_score(labels, chance.argmax(1)) == accuracy(logits, labels)
    )
    assert found.max_softmax == pytest.approx(chance.max(1), rel=1e-6)
    assert found.energy == pytest.approx(-logsumexp(logits.astype(float), axis=1), rel=1e-5)


def test_large_and_missing_logits():
    found = row_scores(np.array([[1000.0, 0.0, -np.inf], [0.0, 0.0, -np.inf]]), np.array([0, 2]))
    assert found.log_loss[0] == 0
    assert found.log_loss[1] == np.inf
    assert found.max_softmax == pytest.approx([1, 0.5])
    assert found.energy == pytest.approx([-1000, -np.log(2)])


def test_broken_rows_are_an_error_and_no_rows_are_none():
    with pytest.raises(MonoevalError, match="2 of 3"):
        row_scores(np.array([[0.0, np.nan], [-np.inf, -np.inf], [0, 1]]), np.zeros(3, int))
    assert row_scores(np.empty((0, 3)), np.empty(0, int)).log_loss.size == 0
    assert np.isnan(accuracy(np.empty((0, 3)), np.empty(0, int)))


def test_area_by_hand():
    # trapezoids (1 + .8)/2·.2 + (.8 + .4)/2·.6 = .18 + .36, over .8
    assert area_under_levels([0.8, 0, 0.2], [0.4, 1, 0.8]) == pytest.approx(0.54 / 0.8)
    with pytest.raises(MonoevalError, match="two or more"):
        area_under_levels([0.1, 0.1], [1, 1])


def test_relative_accuracy():
    assert relative_accuracy(0.4, 0.8) == 0.5
    assert np.isnan(relative_accuracy(0.4, 0.0))


def test_effective_robustness_is_what_lies_above_the_line_of_standard_models() -> None:
    # on the identity line the expected accuracy is the clean one
    assert effective_robustness(0.6, 0.75, slope=1, intercept=0) == pytest.approx(-0.15)
    # logit(0.75) = ln 3, twice that is ln 9, and σ(ln 9) = 0.9
    assert effective_robustness(0.8, 0.75, slope=2, intercept=0) == pytest.approx(-0.1)
    # σ(0 − ln 3) = 1/4
    assert effective_robustness(0.5, 0.5, slope=1, intercept=-np.log(3)) == pytest.approx(0.25)
    assert effective_robustness(0.9, 1.0, slope=1, intercept=0) == pytest.approx(-0.1)
    assert np.isnan(effective_robustness(0.9, 1.0, slope=0, intercept=0))


def test_relative_robustness_is_the_gain_under_the_shift() -> None:
    assert relative_robustness(0.55, 0.5) == pytest.approx(0.05)


PUBLISHED = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's errors, typed again: the four corruptions that are no part of an mCE have none here."""


def test_alexnets_errors_are_the_published_ones():
    assert ALEXNET_ERROR == PUBLISHED
    assert ALEXNET_CLEAN_ERROR == 0.4348


def test_alexnet_has_an_mce_of_one():
    spread = np.array([-0.2, -0.1, 0, 0.1, 0.2])
    alexnet = {name: error + spread for name, error in PUBLISHED.items()}
    assert mean_corruption_error(alexnet) == pytest.approx(1)
    assert mean_corruption_error(alexnet, clean_error=0.4348) == pytest.approx(1)
    half = {name: errors / 2 for name, errors in alexnet.items()}
    assert mean_corruption_error(half) == pytest.approx(0.5)


def test_relative_mce_subtracts_the_clean_errors():
    errors = {name: [0.5] * 5 for name in PUBLISHED}
    by_hand = np.mean([(0.5 - 0.25) / (error - 0.4348) for error in PUBLISHED.values()])
    assert mean_corruption_error(errors, clean_error=0.25) == pytest.approx(by_hand)


def test_an_mce_needs_fifteen_corruptions_and_five_severities():
    errors = {name: [0.5] * 5 for name in PUBLISHED}
    with pytest.raises(MonoevalError, match="see to fog"):
        mean_corruption_error({name: e for name, e in errors.items() if name != "fog"})
    with pytest.raises(MonoevalError, match="also for snow"):
        mean_corruption_error(errors | {"snow": [0.5]})
