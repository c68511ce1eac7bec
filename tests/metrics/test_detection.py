"""AUROC and FPR95 against scikit-learn and by hand, ties included, and the variance that intervals rest on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from monoeval.errors import MonoevalError
from monoeval.metrics.detection import auroc, detection, false_positive_rate, linearised, placements
from monoeval.metrics.paired import paired_difference

SIDE = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


@given(SIDE, SIDE)
def test_both_agree_with_scikit_learn_whatever_ties(positive: list[int], negative: list[int]) -> None:
    truth = [1] * len(positive) + [0] * len(negative)
    assert auroc(positive, negative) == pytest.approx(roc_auc_score(truth, positive + negative))
    false, true, _ = roc_curve(truth, positive + negative, drop_intermediate=False)
    assert false_positive_rate(positive, negative) == pytest.approx(false[true >= 0.95 - 1e-9].min())


def test_fpr95_by_hand() -> None:
    positive = np.arange(1, 21)  # 95 % of twenty is nineteen: all but the row that scores 1
    assert false_positive_rate(positive, [0, 1, 1.5, 2, 30]) == 2 / 5  # 2 ties with the threshold and passes
    assert false_positive_rate(positive, [0, 1]) == 0
    # the other way round 95 % of the two zeros and ones is both of them: all that reach 0
    assert detection({"energy": -positive}, {"energy": [0, -1]}, "ood") == {
        "auroc_energy": 39.5 / 40,
        "fpr95_energy": 1 / 20,
    }


def test_placements_by_hand() -> None:
    inside, outside = placements([3, 1, 2], [2, 0])
    np.testing.assert_allclose(inside, [1, 0.5, 0.75])
    np.testing.assert_allclose(outside, [0.5, 1])


def test_the_paired_interval_has_the_variance_of_delong() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 400), rng.normal(0, 2, 150)
    inside, outside = placements(positive, negative)
    delong = inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside)
    interval = paired_difference(np.concatenate(linearised(positive, negative))[:, None])
    assert interval.mean == pytest.approx(
        roc_auc_score([1] * 400 + [0] * 150, np.concatenate([positive, negative]))
    )
    assert interval.standard_error**2 == pytest.approx(delong, rel=0.01)  # n − 1 of each side, or of both together


def test_which_score_is_high_for_what() -> None:
    sure = {"max_softmax": [0.9, 0.8], "energy": [-5.0, -4.0], "neighbour_distance": [0.1, 0.2]}
    unsure = {"max_softmax": [0.3, 0.2], "energy": [-1.0, 0.0], "neighbour_distance": [0.8, 0.9]}
    for positive in ("id", "ood"):
        assert detection(sure, unsure, positive) == {
            f"{kind}_{name}": float(kind == "auroc") for name in sure for kind in ("auroc", "fpr95")
        }
    assert detection({"energy": sure["energy"]}, unsure).keys() == {"auroc_energy", "fpr95_energy"}


def test_what_cannot_be_told_apart() -> None:
    with pytest.raises(MonoevalError, match="on both sides"):
        auroc([], [1])
    with pytest.raises(MonoevalError, match="not numbers"):
        auroc([1, np.nan], [1])
