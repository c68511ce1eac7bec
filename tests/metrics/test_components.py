"""Variance components against tables worked by hand, numpy's closed forms, and a study with known components."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monoeval.metrics.components import Levels, variance_of_mean
from monoeval.metrics.error_rates import accuracy_interval, relative_error_reduction
from monoeval.metrics.paired import mean_interval, paired_difference

LEVELS = st.builds(Levels, *[st.integers(1, 3)] * 3)


def crossed(table_rbad):
    _, backbones, adapters, draws = table_rbad.shape
    levels = Levels(backbones, adapters, draws)
    return variance_of_mean(table_rbad.reshape(len(table_rbad), -1), levels)


def drawn(rng, rows, levels, row=0.0, backbone=0.0, adapter=0.0, draw=0.0, rest=0.0):
    """A table [R, U] of effects with these standard deviations."""
    b, a, d = levels.backbones, levels.adapters, levels.draws
    parts = ((row, (rows, 1, 1, 1)), (backbone, (1, b, 1, 1)), (adapter, (1, b, a, 1)), (draw, (1, 1, 1, d)))
    table = sum(sd * rng.normal(size=shape) for sd, shape in parts) + rest * rng.normal(size=(rows, b, a, d))
    return table.reshape(rows, -1)


def test_a_crossed_table_worked_by_hand():
    # Two rows, two backbones of two adapters, two draws. Additive, so that no interaction is left: rows −1 +1,
    # backbones 0 4, adapters −1 +1 in the first and −2 +2 in the second, draws −3 +3.
    row, draw = np.array([-1, 1]), np.array([-3, 3])
    adapter = np.array([[-1, 1], [2, 6]])
    table = row[:, None, None, None] + adapter[:, :, None] + draw
    found = crossed(table.astype(float))
    # variance of a mean of two: rows 2/2, draws 18/2, backbones' means (0 and 4, what adapters add among them) 8/2
    assert found.value == pytest.approx(1 + 9 + 4)
    # adapters: variances 2 and 8 in the two backbones, 5 on average, over four of them; the rest is backbones'
    shares = found.shares
    assert shares.adapter == pytest.approx(1.25 / 14)
    assert shares.backbone == pytest.approx((4 - 1.25) / 14)
    assert shares.draw == pytest.approx(9 / 14)
    assert (shares.rows, shares.interplay) == (pytest.approx(1 / 14), 0)
    assert found.unit_share == pytest.approx(13 / 14)
    # each mean of two has one degree of freedom; Satterthwaite: 14² / (1 + 81 + 16) = 2; harmonic: 1
    assert found.degrees_of_freedom == pytest.approx(1)


def test_what_draws_and_backbones_do_together_is_told_from_either():
    # backbones ±3, draws ±3, ±1 crosswise, rows ±1. Parts: 9, 9, 1 and 1; a backbone alone 9 − 1.
    effects = np.array([-1.0, 1.0])
    cells = 3 * effects[:, None] + 3 * effects + effects[:, None] * effects
    found = crossed(effects[:, None, None, None] + cells[:, None, :])
    assert found.value == pytest.approx(1 + 9 + 9 - 1)
    assert vars(found.shares) == pytest.approx(
        {"backbone": 8 / 18, "adapter": 0, "draw": 8 / 18, "interplay": 1 / 18, "rows": 1 / 18}
    )
    # crosswise alone: neither has a mean of its own, and components below zero count as none
    found = crossed(effects[:, None, None, None] + 5 * (effects[:, None] * effects)[:, None, :])
    assert found.shares.rows == pytest.approx(1)


def mean_squares(table_rpd):
    """The seven mean squares of a three-way table by sums over its marginal means, written out."""
    r, p, d = table_rpd.shape
    m = table_rpd.mean()
    mr, mp, md = table_rpd.mean((1, 2)), table_rpd.mean((0, 2)), table_rpd.mean((0, 1))
    rp = table_rpd.mean(2) - mr[:, None] - mp + m
    rd = table_rpd.mean(1) - mr[:, None] - md + m
    pd = table_rpd.mean(0) - mp[:, None] - md + m
    rest = table_rpd - table_rpd.mean(2)[:, :, None] - table_rpd.mean(1)[:, None] - table_rpd.mean(0)
    rest = rest + mr[:, None, None] + mp[:, None] + md - m
    return {
        "r": (p * d * mr.var(ddof=1), r - 1), "p": (r * d * mp.var(ddof=1), p - 1),
        "d": (r * p * md.var(ddof=1), d - 1), "rp": (d * (rp**2).sum() / ((r - 1) * (p - 1)), (r - 1) * (p - 1)),
        "rd": (p * (rd**2).sum() / ((r - 1) * (d - 1)), (r - 1) * (d - 1)),
        "pd": (r * (pd**2).sum() / ((p - 1) * (d - 1)), (p - 1) * (d - 1)),
        "rpd": ((rest**2).sum() / ((r - 1) * (p - 1) * (d - 1)), (r - 1) * (p - 1) * (d - 1)),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_three_way_table_against_its_mean_squares(seed):
    rng, levels = np.random.default_rng(seed), Levels(backbones=4, adapters=3, draws=5)
    table = drawn(rng, 30, levels, row=1, backbone=0.5, adapter=0.5, draw=0.5, rest=1)
    found = variance_of_mean(table, levels)
    ms = mean_squares(table.reshape(30, 4, 3, 5).mean(2))
    sign = {name: (-1) ** (len(name) + 1) for name in ms}
    total = sum(sign[name] * value for name, (value, _) in ms.items())
    assert found.value == pytest.approx(total / (30 * 4 * 5))
    satterthwaite = total**2 / sum(value**2 / freedom for value, freedom in ms.values())
    assert 3 <= found.degrees_of_freedom <= satterthwaite * (1 + 1e-9)


def test_an_axis_of_negative_component_is_averaged_over():
    rng, levels = np.random.default_rng(0), Levels(backbones=3, draws=2)
    table = drawn(rng, 50, levels, row=1, backbone=1, rest=1)
    table -= table.reshape(50, 3, 2).mean((0, 1))[None, None].repeat(3, 1).reshape(1, 6)  # draws alike on average
    found = paired_difference(table, levels=levels)
    over_backbones = paired_difference(table.reshape(50, 3, 2).mean(2))
    assert (found.low, found.high) == pytest.approx((over_backbones.low, over_backbones.high))
    assert found.shares.draw == 0


@settings(max_examples=60)
@given(LEVELS, st.integers(0, 5))
def test_shares_sum_to_one_and_an_axis_without_levels_has_none(levels, seed):
    table = drawn(np.random.default_rng(seed), 8, levels, 1, 1, 1, 1, 1)
    found = variance_of_mean(table, levels)
    shares = vars(found.shares)
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= -1e-12
    assert shares["rows"] == pytest.approx(1 - found.unit_share)
    for axis in ("backbone", "adapter", "draw"):
        assert shares[axis] == 0 or getattr(levels, f"{axis}s") > 1


@given(st.sampled_from(["backbones", "adapters", "draws"]), st.integers(2, 4), st.integers(0, 9))
def test_one_axis_alone_is_the_two_way_interval(axis, count, seed):
    table = np.random.default_rng(seed).normal(size=(6, count))
    one, other = mean_interval(table), mean_interval(table, levels=Levels(**{axis: count}))
    assert (one.low, one.high, one.unit_share) == (other.low, other.high, other.unit_share)
    assert getattr(other.shares, axis[:-1]) == pytest.approx(other.unit_share)


@given(st.integers(0, 20))
def test_adapters_of_a_backbone_are_nested_so_their_numbers_do_not_count(seed):
    rng, levels = np.random.default_rng(seed), Levels(backbones=3, adapters=2, draws=2)
    table = drawn(rng, 20, levels, 1, 1, 1, 1, 1)
    swapped = table.reshape(20, 3, 2, 2).copy()
    swapped[:, 1] = swapped[:, 1, ::-1]
    one, other = (paired_difference(t.reshape(20, -1), levels=levels) for t in (table, swapped))
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert vars(one.shares) == pytest.approx(vars(other.shares))


def test_estimates_are_right_on_average():
    """Where nothing is truncated the estimator is unbiased: the mean of many is the variance of the means."""
    rng, levels = np.random.default_rng(0), Levels(backbones=4, adapters=2, draws=4)
    sd = {"row": 0.3, "backbone": 1.0, "adapter": 0.8, "draw": 1.0, "rest": 0.3}
    true = {"rows": 0.09 / 20 + 0.09 / (20 * 32), "backbone": 1 / 4, "adapter": 0.64 / 8, "draw": 1 / 4}
    found = [variance_of_mean(drawn(rng, 20, levels, **sd), levels) for _ in range(2000)]
    assert np.mean([f.value for f in found]) == pytest.approx(sum(true.values()), rel=0.06)
    for name in true:
        estimated = np.mean([f.value * getattr(f.shares, name) for f in found])
        assert estimated == pytest.approx(true[name], rel=0.12), name


@pytest.mark.parametrize("levels", [Levels(3, 2, 2), Levels(5, 2, 2)], ids=str)
@pytest.mark.parametrize("large", ["rest", "backbone", "adapter"])
def test_crossed_coverage(levels, large):
    rng, held, studies = np.random.default_rng(0), 0, 300
    sd = {"row": 0.3, "rest": 0.3} | ({} if large == "rest" else {large: 0.3})
    for _ in range(studies):
        interval = paired_difference(drawn(rng, 50, levels, **sd), levels=levels)
        held += interval.low <= 0 <= interval.high
    assert held / studies >= 0.915  # 95 % less three simulation errors; wider intervals are no fault


def test_clusters_rates_and_ratios_know_of_levels():
    rng, levels = np.random.default_rng(0), Levels(backbones=3, draws=2)
    table = drawn(rng, 40, levels, row=1, backbone=0.6, draw=0.6, rest=1)
    each = paired_difference(table, np.arange(40), levels=levels)
    assert each.standard_error == pytest.approx(paired_difference(table, levels=levels).standard_error)
    right = (table > -0.5).astype(float)
    wide, narrow = accuracy_interval(right, levels=levels), accuracy_interval(right)
    assert wide.high - wide.low > narrow.high - narrow.low  # six units of one factor would be more to go by
    wrong = (drawn(rng, 40, levels, row=1, rest=1) > 0).astype(float)
    of_gain = relative_error_reduction(right - wrong, wrong, levels=levels)
    without = relative_error_reduction(right - wrong, wrong)
    assert of_gain.high - of_gain.low > without.high - without.low


def test_rows_that_are_alike_have_no_shares():
    found = paired_difference(np.full((20, 4), 0.5), levels=Levels(backbones=2, draws=2))
    assert found.shares is None
    assert found.high > 0.5
