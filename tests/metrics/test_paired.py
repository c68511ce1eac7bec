"""Intervals against scipy, a table worked by hand, and the coverage they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from monoeval.errors import MonoevalError
from monoeval.metrics.paired import Interval, holm, mean_interval, paired_difference, verdict

TABLES = arrays(
    np.float64, st.tuples(st.integers(2, 8), st.integers(1, 4)), elements=st.integers(-8, 8).map(lambda x: x / 8)
)


def test_a_table_worked_by_hand():
    # rows 1 3 | 2 6 | 6 6: means 2, 4, 6; units 3, 5; all 4.
    # MS_rows = 2·(4+0+4)/2 = 8; MS_units = 3·(1+1)/1 = 6; residuals 0 0 | -1 1 | 1 -1: MS_error = 4/2 = 2.
    found = paired_difference([[1, 3], [2, 6], [6, 6]])
    assert found.mean == 4
    assert found.standard_error == pytest.approx(np.sqrt((8 + 6 - 2) / 6))
    # Satterthwaite 2.06; harmonic mean of 1 (units: 6 − 2 of 12) and 2 (rows): 1 / (1/3 + 1/3); at least 1
    assert pytest.approx(2.057, abs=1e-3) == 12**2 / (8**2 / 2 + 6**2 / 1 + 2**2 / 2)
    assert found.degrees_of_freedom == pytest.approx(1.5)
    assert found.unit_share == pytest.approx(4 / 12)
    t = stats.t(found.degrees_of_freedom)
    assert (found.low, found.high) == pytest.approx((4 - t.ppf(0.975) * 2**0.5, 4 + t.ppf(0.975) * 2**0.5))
    assert found.smallest == pytest.approx((t.ppf(0.975) + t.ppf(0.8)) * 2**0.5)
    assert found.p_value == pytest.approx(2 * t.sf(4 / 2**0.5))
    assert (found.rows, found.units) == (3, 2)


def test_a_negative_component_counts_as_zero():
    # units alike on average, so MS_units = 0 < MS_error: only rows remain
    table = np.array([[1.0, 3], [5, 3], [6, 6]])
    found = paired_difference(table)
    assert found.standard_error == pytest.approx(table.mean(1).std(ddof=1) / np.sqrt(3))
    assert found.degrees_of_freedom == 2  # of the rows alone: a component of zero brings no uncertainty
    assert found.unit_share == 0


def test_satterthwaite_where_units_are_much_like_noise():
    # MS_units is mostly noise, so its square weighs more than what it says of units
    rng = np.random.default_rng(1)
    table = 0.5 * rng.normal(size=(40, 1)) + rng.normal(size=(40, 4)) + [0, 0.2, 0.4, 0.5]
    mean, row, unit = table.mean(), table.mean(1), table.mean(0)
    ms_rows, ms_units = 4 * row.var(ddof=1), 40 * unit.var(ddof=1)
    ms_error = ((table - row[:, None] - unit + mean) ** 2).sum() / (39 * 3)
    assert ms_rows > ms_error
    total = ms_rows + ms_units - ms_error
    found = paired_difference(table)
    assert found.standard_error**2 == pytest.approx(total / 160)
    satterthwaite = total**2 / (ms_rows**2 / 39 + ms_units**2 / 3 + ms_error**2 / (39 * 3))
    assert found.degrees_of_freedom == pytest.approx(satterthwaite)


def test_one_unit_is_the_t_test_over_rows():
    values = np.random.default_rng(0).normal(0.2, 1, 40)
    found = paired_difference(values[:, None], level=0.9)
    theirs = stats.ttest_1samp(values, 0)
    assert found.p_value == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
    assert found.at(0.95) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


@given(TABLES, st.integers(2, 5))
def test_units_that_are_alike_add_nothing(table, copies):
    one, many = paired_difference(table[:, :1]), paired_difference(np.repeat(table[:, :1], copies, 1))
    assert (many.low, many.high) == pytest.approx((one.low, one.high), abs=1e-9)


@given(TABLES, st.floats(-1, 1))
def test_shifting_shifts(table, shift):
    one, other = paired_difference(table), paired_difference(table + shift)
    assert (other.low, other.high) == pytest.approx((one.low + shift, one.high + shift), abs=1e-6)


@given(TABLES)
def test_swapping_the_arms_flips_the_sign(table):
    one, other = paired_difference(table), paired_difference(-table)
    assert (other.low, other.mean, other.high) == pytest.approx((-one.high, -one.mean, -one.low), abs=1e-9)
    assert other.p_value == pytest.approx(one.p_value)


@given(TABLES, st.randoms())
def test_clusters_of_one_row_are_rows_and_order_is_nothing(table, random):
    order = list(range(len(table)))
    random.shuffle(order)
    one, other = paired_difference(table), paired_difference(table[order], np.array(order) * 7)
    assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-9)


@given(TABLES, st.integers(2, 4))
def test_copies_of_rows_in_one_cluster_are_one_row(table, copies):
    one = mean_interval(table)
    other = mean_interval(np.repeat(table, copies, 0), np.repeat(np.arange(len(table)), copies))
    assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-9)


def test_unequal_clusters_keep_the_mean_of_rows():
    table = np.random.default_rng(0).normal(size=(30, 3))
    groups = np.repeat(["a", "b", "c", "d"], [1, 4, 10, 15])
    found = paired_difference(table, groups)
    assert found.mean == pytest.approx(table.mean())
    # linearised ratio estimator (Cochran, Sampling Techniques, ch. 6) where units are alike
    row = table[:, 0]
    totals = np.array([(row[groups == g] - row.mean()).sum() for g in "abcd"])
    expected = np.sqrt(4 / 3 * (totals**2).sum()) / 30
    assert paired_difference(table[:, [0, 0]], groups).standard_error == pytest.approx(expected)


def test_nothing_to_generalise_from():
    single = paired_difference([[0.1, 0.2]])
    assert (single.low, single.high, single.p_value) == (-np.inf, np.inf, 1.0)
    assert verdict(single, {}).kind == "undetermined"
    same = paired_difference(np.zeros((5, 2)))
    # five rows alike do not say that the next one is: exact binomial bound on what none of five showed
    bound = stats.binomtest(0, 5).proportion_ci(0.95, "exact").high
    assert (same.low, same.high, same.p_value) == (pytest.approx(-bound), pytest.approx(bound), 1)
    assert verdict(same, {}).kind == "undetermined"
    assert verdict(paired_difference(np.zeros((2000, 2))), {}).kind == "no gain"
    with pytest.raises(MonoevalError, match="1 of 2"):
        paired_difference([[np.nan], [1.0]])
    with pytest.raises(MonoevalError, match="shape"):
        paired_difference(np.zeros((0, 3)))
    with pytest.raises(MonoevalError, match="groups"):
        paired_difference(np.zeros((3, 3)), np.arange(2))


@given(st.sampled_from([-1.0, -0.5, 0.0, 1.0]), st.integers(2, 5))
def test_rows_that_are_alike_are_never_certain(value, groups):
    alike = np.full((12, 3), value)
    found = paired_difference(alike, np.arange(12) % groups)
    assert found.high - found.low == pytest.approx(2 * (1 - 0.025 ** (1 / 12)))
    assert found == paired_difference(alike)  # they show nothing that clusters have in common


def test_a_row_that_differs_is_no_reason_to_be_surer():
    groups, delta = np.repeat(np.arange(5), 128), np.zeros((640, 3))
    none = paired_difference(delta, groups)
    assert none.within(0.01)  # two arms of identical predictions are equivalent, also with five writers
    for row, unit in ((0, 0), (200, 1), (201, 1), (639, 2)):
        delta[row, unit] = 1
        some = paired_difference(delta, groups)
        assert some.high - some.low >= none.high - none.low - 1e-12
    delta[::9] = 1  # and where many do, their spread alone decides
    assert paired_difference(delta) == mean_interval(delta)


@pytest.mark.parametrize("units", [3, 5, 10])
@pytest.mark.parametrize("unit_sd", [0.0, 0.02, 0.3])
def test_coverage(units, unit_sd):
    """95 % intervals hold the truth in 95 % of studies, whether seeds matter not at all, somewhat, or most."""
    rng, rows, studies = np.random.default_rng(units), 200, 600
    held = 0
    for _ in range(studies):
        row, unit = rng.normal(0, 0.3, (rows, 1)), rng.normal(0, unit_sd, units)
        found = paired_difference(row + unit + rng.normal(0, 0.3, (rows, units)))
        held += found.low <= 0 <= found.high
    # the band 93 … 97.5 %, widened by three simulation errors (2.7 points)
    assert 0.903 <= held / studies <= 0.995


def test_power_of_the_smallest_difference():
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(600):
        values = rng.normal(0, 1, (60, 1))
        true = (stats.t.ppf(0.975, 59) + stats.t.ppf(0.8, 59)) / np.sqrt(60)
        seen.append(paired_difference(values + true).low > 0)
    assert 0.75 < np.mean(seen) < 0.85


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm(p_values):
    found = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    worst = 0.0
    for rank, i in enumerate(order):  # step by step, as in the paper
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        assert found[i] == pytest.approx(worst)


def around(mean, half):
    """A 95 % interval of many degrees of freedom."""
    error = half / stats.norm.ppf(0.975)
    smallest = error * stats.norm.ppf([0.975, 0.8]).sum()
    return Interval(
        mean, mean - half, mean + half, error, 1e9, smallest, 2 * stats.norm.sf(abs(mean) / error), 3, 100
    )


@pytest.mark.parametrize(
    ("gain", "controls", "kind", "words"),
    [
        (
            around(0.03, 0.01),
            {"relu": around(0.02, 0.01), "pca": around(0.05, 0.01)},
            "beyond the controls",
            "relu",
        ),
        (
            around(0.03, 0.01),
            {"relu": around(0.02, 0.01), "pca": around(0.0, 0.005)},
            "explained by controls",
            "pca",
        ),
        (
            around(0.03, 0.01),
            {"relu": around(-0.02, 0.01), "pca": around(0.03, 0.005)},
            "explained by controls",
            "relu",
        ),
        (around(0.03, 0.01), {"relu": around(0.01, 0.02)}, "undetermined", "±2.9 points"),
        (
            around(0.07, 0.01),
            {"topk": around(0.06, 0.01), "relu": around(0.01, 0.02)},
            "undetermined",
            "against relu",
        ),
        (
            around(0.07, 0.01),
            {"relu": around(0.01, 0.02), "topk": around(0.06, 0.01)},
            "undetermined",
            "against relu",
        ),
        (around(0.03, 0.01), {}, "gain, no controls", "no control to hold it against"),
        (around(-0.03, 0.01), {"relu": around(0.01, 0.005)}, "worse", "Loses 3.0 points"),
        (around(0.0, 0.005), {}, "no gain", "[−0.4, 0.4] lies within ±1.0 point"),
        (around(0.01, 0.02), {}, "undetermined", "+1.0 point [−1.0, 3.0]; it could have seen ±2.9 points"),
        (around(0.005, 0.002), {"relu": around(0.004, 0.002)}, "beyond the controls", "0.5 points"),
    ],
)
def test_verdicts(gain, controls, kind, words):
    found = verdict(gain, controls)
    assert found.kind == kind
    assert words in found.sentence


RANK = {"worse": -1, "no gain": 0, "explained by controls": 1, "undetermined": 1, "beyond the controls": 2}
SHARES = st.floats(-0.1, 0.1)
DIFFERENCES = st.builds(around, SHARES, st.floats(1e-4, 0.08))
CONTROLS = st.dictionaries(st.sampled_from(["relu", "pca", "topk"]), DIFFERENCES, min_size=1)


@given(DIFFERENCES, CONTROLS, st.floats(0, 0.1), st.randoms())
def test_a_better_or_a_further_control_never_lifts_a_verdict(gain, controls, more, random):
    found = verdict(gain, controls).kind
    name = random.choice(sorted(controls))
    lower = controls[name].mean - more
    better = around(lower, controls[name].high - controls[name].mean)
    assert RANK[verdict(gain, {**controls, name: better}).kind] <= RANK[found]
    assert RANK[verdict(gain, {**controls, "new": better}).kind] <= RANK[found]
    assert (found == "beyond the controls") == (gain.low > 0 and all(c.low > 0 for c in controls.values()))


@given(DIFFERENCES, CONTROLS, st.floats(0.001, 0.05), st.floats(0, 0.05))
def test_a_verdict_hangs_on_numbers_alone(gain, controls, margin, more):
    found = verdict(gain, controls, margin).kind
    backwards = dict(reversed(controls.items()))
    assert verdict(gain, backwards, margin).kind == found
    wider = verdict(gain, controls, margin + more).kind
    assert found == wider or found == "undetermined"  # a wider margin settles, and unsettles nothing
    assert (found == "worse") == (gain.high < 0)
    if found in {"explained by controls", "beyond the controls"}:
        assert gain.low > 0
    if found == "explained by controls":
        assert any(c.high < 0 or c.within(margin) for c in controls.values())
    if found == "no gain":
        assert gain.within(margin)
