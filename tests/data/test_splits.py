"""Rows and labels: exact counts, nestedness, and what may never happen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monoeval.data.label_noise import label_signal, realised, symmetric
from monoeval.data.splits import folds, held_out, shots, stratified_limit
from monoeval.errors import UsageError

labels_of = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda x: np.array(x, dtype=np.int64))


@given(labels=labels_of, n=st.integers(1, 130))
def test_a_limit_is_balanced_nested_and_sorted(labels: np.ndarray, n: int) -> None:
    rows = stratified_limit(labels, n)
    assert len(rows) == min(n, len(labels))
    assert np.all(np.diff(rows) > 0)
    assert set(rows) <= set(stratified_limit(labels, n + 1))
    taken = np.bincount(labels[rows], minlength=7)
    size = np.bincount(labels, minlength=7)
    for a in range(7):
        for b in range(7):  # a class is ahead of another by more than one only where that one is used up
            assert taken[a] <= taken[b] + 1 or taken[b] == size[b]


def test_a_limit_does_not_take_the_first_rows_of_a_sorted_source() -> None:
    rows = stratified_limit(np.repeat([0, 1], 1000), 100)
    assert 300 < rows[rows < 1000].mean() < 700


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="--limit"):
        stratified_limit(np.array([0, 1]), 0)


@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 4))
@settings(max_examples=30)
def test_shots_are_nested_and_apart_from_validation(draw: int, repeat: int, validation: int) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(3), [20, 21, 40]))
    names = ("a", "b", "c")
    chosen = {k: shots(labels, names, k, validation, draw, repeat) for k in (1, 2, 4, 8, 16)}
    largest = set(chosen[16][0])
    smaller: set[int] = set()
    for k, (train, held) in chosen.items():
        assert np.bincount(labels[train]).tolist() == [k] * 3
        assert np.bincount(labels[held], minlength=3).tolist() == [validation] * 3
        assert smaller <= set(train)
        assert not largest & set(held)
        smaller = set(train)


def test_validation_rows_are_nested_too() -> None:
    labels = np.repeat([0, 1], 30)
    one = shots(labels, ("a", "b"), 1, 1, 0)[1]
    four = shots(labels, ("a", "b"), 8, 4, 0)[1]
    assert set(one) <= set(four)


def test_draws_and_repeats_differ() -> None:
    labels = np.repeat([0, 1], 200)
    rows = {tuple(shots(labels, ("a", "b"), 5, 0, draw, repeat)[0]) for draw in range(4) for repeat in range(4)}
    assert len(rows) == 16


def test_too_few_rows_name_the_class() -> None:
    with pytest.raises(UsageError, match=r"'cat' has 5 training rows, and 4 shots with 2 .* need 6"):
        shots(np.array([0] * 9 + [1] * 5), ("dog", "cat"), 4, 2, 0)
    with pytest.raises(UsageError, match="'bird' has 0"):
        shots(np.array([0] * 9), ("dog", "bird"), 1, 0, 0)


@given(
    n=st.integers(1, 400),
    n_classes=st.integers(2, 12),
    hundredths=st.integers(0, 100),
    draw=st.integers(0, 10**6),
)
def test_symmetric_noise_flips_exactly_as_many_as_asked(
    n: int, n_classes: int, hundredths: int, draw: int
) -> None:
    clean = np.random.default_rng(n).integers(0, n_classes, n)
    before = clean.copy()
    noisy = symmetric(clean, n_classes, hundredths / 100, draw)
    np.testing.assert_array_equal(clean, before)
    assert (noisy != clean).sum() == hundredths * n // 100  # whole numbers: no rounding to get wrong
    assert noisy.min() >= 0
    assert noisy.max() < n_classes
    np.testing.assert_array_equal(noisy, symmetric(clean, n_classes, hundredths / 100, draw))


def test_the_count_is_of_the_decimal_that_was_typed() -> None:
    clean = np.zeros(100, dtype=np.int64)
    assert (symmetric(clean, 3, 0.29, draw=0) != 0).sum() == 29  # 0.29 · 100 is 28.999… in floating point


def test_noise_falls_evenly_on_the_other_classes() -> None:
    clean = np.repeat(np.arange(5), 8000)
    noisy = symmetric(clean, 5, 0.4, draw=3)
    rate, counts = realised(clean, noisy, 5)
    assert rate == 0.4
    assert counts.sum() == 40000
    assert np.trace(counts) == 24000
    off = counts[~np.eye(5, dtype=bool)]  # 20 cells of about 800
    assert ((off - 800) ** 2 / 800).sum() < 50  # chi-squared, about 19 degrees of freedom: p ≈ 1e-4


def test_transition_counts_by_hand() -> None:
    rate, counts = realised(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert rate == 0.5
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_label_signal() -> None:
    assert label_signal(0, 10) == 1
    assert label_signal(0.9, 10) == pytest.approx(0)
    assert label_signal(0.9, 7) == pytest.approx(-0.05)
    assert label_signal(0.9, 100) == pytest.approx(0.1 - 0.9 / 99)


def test_impossible_noise_is_refused() -> None:
    with pytest.raises(UsageError, match=r"1\.2"):
        symmetric(np.array([0, 1]), 2, 1.2, 0)
    with pytest.raises(UsageError, match="two classes"):
        symmetric(np.array([0, 0]), 1, 0.5, 0)


@given(labels=labels_of, n_folds=st.integers(2, 5), seed=st.integers(0, 3))
def test_folds_are_even_in_size_and_class(labels: np.ndarray, n_folds: int, seed: int) -> None:
    if len(labels) < n_folds:
        with pytest.raises(UsageError):
            folds(labels, n_folds, seed=seed)
        return
    fold = folds(labels, n_folds, seed=seed)
    assert np.ptp(np.bincount(fold, minlength=n_folds)) <= 1
    for label in np.unique(labels):
        assert np.ptp(np.bincount(fold[labels == label], minlength=n_folds)) <= 1


def test_folds_keep_groups_whole() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    groups = np.repeat(np.arange(30), 10)
    fold = folds(labels, 5, groups)
    assert set(fold) == set(range(5))
    assert all(len(set(fold[groups == group])) == 1 for group in range(30))
    np.testing.assert_array_equal(fold, folds(labels, 5, groups))
    assert (fold != folds(labels, 5, groups, seed=1)).any()


def test_folds_with_one_row_a_class_or_too_few_groups() -> None:
    assert sorted(np.bincount(folds(np.arange(10), 5))) == [2] * 5
    assert sorted(np.bincount(folds(np.arange(10), 5, groups=np.arange(10)))) == [2] * 5
    assert sorted(np.bincount(folds(np.repeat([0, 1], 5), 5, groups=np.repeat([0, 1], 5)))) == [2] * 5


def test_held_out_rows_do_not_depend_on_order() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 1])
    ids = np.array([f"row{i}" for i in range(31)])
    train, test = held_out(labels, ids)
    assert sorted([*train, *test]) == list(range(31))
    assert np.bincount(labels[test], minlength=3).tolist() == [3, 6, 0]
    order = np.random.default_rng(0).permutation(31)
    assert set(ids[order][held_out(labels[order], ids[order])[1]]) == set(ids[test])
