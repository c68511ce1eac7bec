"""Intervals of one arm's accuracy and of relative error reductions, against other ways to the same numbers."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from monoeval.errors import MonoevalError
from monoeval.metrics.error_rates import accuracy_interval, relative_error_reduction
from monoeval.metrics.paired import paired_difference

CORRECT = arrays(
    np.float64, st.tuples(st.integers(2, 12), st.integers(1, 4)), elements=st.sampled_from([0.0, 1.0])
)


def test_all_right_is_wilsons_bound_and_not_certain():
    found = accuracy_interval(np.ones((450, 1)))
    theirs = stats.binomtest(450, 450).proportion_ci(0.95, "wilson")
    assert found.mean == found.high == 1
    assert found.low == pytest.approx(
        theirs.low, abs=1e-4
    )  # a t quantile of 449 degrees of freedom, not a normal one
    assert accuracy_interval(np.ones((450, 3))).low == found.low  # seeds that agree are no further rows
    clustered = accuracy_interval(np.ones((450, 1)), np.arange(450) // 45)
    assert clustered.low == pytest.approx(1 / (1 + stats.t.ppf(0.975, 9) ** 2 / 10))


def test_independent_rows_give_wilsons_interval():
    correct = np.arange(2000)[:, None] < 1900
    found = accuracy_interval(correct)
    theirs = stats.binomtest(1900, 2000).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=2e-5)
    assert found.at(0.95) == (found.low, found.high)
    assert found.independent == pytest.approx(1999)  # p(1 − p) over the unbiased variance of the mean


def test_copies_of_rows_in_clusters_count_once():
    correct = (np.arange(40) % 5 > 0)[:, None]
    one = accuracy_interval(correct)
    other = accuracy_interval(np.repeat(correct, 3, 0), np.repeat(np.arange(40), 3))
    assert (other.low, other.high) == pytest.approx((one.low, one.high))


@given(CORRECT)
@example(np.eye(2))  # each row is right for one seed, and each seed for one row
def test_an_accuracy_lies_within_its_interval_and_errors_mirror_it(correct):
    found, wrong = accuracy_interval(correct), accuracy_interval(1 - correct)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low > 0.01
    assert (found.low, found.high) == pytest.approx((1 - wrong.high, 1 - wrong.low))


def test_one_row_says_nothing():
    found = accuracy_interval([[1.0, 1.0]])
    assert (found.low, found.high) == (0, 1)


def test_accuracy_covers_where_a_t_interval_does_not():
    rng = np.random.default_rng(0)
    ours, plain = 0, 0
    for _ in range(1000):
        correct = (rng.random((60, 1)) < 0.98).astype(float)
        found, t = accuracy_interval(correct), stats.ttest_1samp(correct[:, 0], 0).confidence_interval(0.95)
        ours += found.low <= 0.98 <= found.high
        plain += t.low <= 0.98 <= t.high
    assert plain < 750
    assert ours > 930


def test_a_reduction_against_fiellers_formula():
    rng = np.random.default_rng(0)
    base = (rng.random((300, 1)) < 0.7).astype(float)
    arm = np.maximum(base, rng.random((300, 1)) < 0.2)
    gain, wrong = arm - base, 1 - base
    found = relative_error_reduction(gain, wrong)
    # the roots of (g − ρe)² = t²·(V_g − 2ρC + ρ²V_e), with the variances of the means
    g, e = gain.mean(), wrong.mean()
    (v_g, c), (_, v_e) = np.cov(gain[:, 0], wrong[:, 0]) / 300
    t2 = stats.t.ppf(0.975, 299) ** 2
    roots = np.roots([e**2 - t2 * v_e, -2 * (g * e - t2 * c), g**2 - t2 * v_g])
    assert found.value == pytest.approx(g / e)
    assert (found.low, found.high) == pytest.approx((min(roots), max(roots)), abs=1e-5)


def test_the_ends_of_a_reduction_are_where_the_test_turns():
    rng = np.random.default_rng(1)
    seed = rng.normal(0, 0.05, 4)
    base = (rng.random((200, 4)) < 0.7 + seed).astype(float)
    gain, wrong = (rng.random((200, 4)) < 0.8).astype(float) - base, 1 - base
    found, groups = relative_error_reduction(gain, wrong), np.arange(200) // 4
    assert paired_difference(gain - found.low * wrong).low == pytest.approx(0, abs=1e-6)
    assert paired_difference(gain - found.high * wrong).high == pytest.approx(0, abs=1e-6)
    assert found.low < found.value < found.high
    assert relative_error_reduction(gain, wrong, groups).value == pytest.approx(found.value)
    wider = relative_error_reduction(gain, wrong, level=0.99)
    assert wider.low < found.low < found.high < wider.high


def test_no_reduction_without_errors_to_reduce():
    assert relative_error_reduction(np.zeros((50, 2)), np.zeros((50, 2))) is None
    few = np.zeros((50, 2))
    few[0] = 1
    assert relative_error_reduction(-few, few) is None  # one row's errors: not above zero


def test_an_arm_like_its_baseline_is_not_certainly_so():
    wrong = (np.arange(400) % 4 == 0).astype(float)[:, None]
    found = relative_error_reduction(np.zeros((400, 1)), wrong)
    bound = (1 - 0.025 ** (1 / 400)) / 0.25
    assert (found.low, found.value, found.high) == pytest.approx((-bound, 0, bound))


def test_what_is_not_a_number_is_said():
    with pytest.raises(MonoevalError, match="1 of 2"):
        relative_error_reduction([[0.0], [0.0]], [[np.nan], [1.0]])
