"""Rows and labels: exact counts, nestedness, and what may never happen."""

import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from monoeval.data.splits import folds, held_out, long_tail, share, shots, stratified_limit
from monoeval.errors import UsageError
from monoeval.scenarios.imbalance import Imbalance

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


@given(st.integers(0, 5), st.integers(0, 3), st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
@settings(max_examples=30)
def test_shares_are_stratified_and_nested_in_each_other_and_in_shots(
    draw: int, repeat: int, shares: list[float]
) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(3), [7, 40, 100]))
    names = ("a", "b", "c")
    smaller: set[int] = set()
    for part in sorted(round(x, 2) for x in shares):
        rows = share(labels, names, part, draw, repeat)
        hundredths = round(100 * part)
        assert np.bincount(labels[rows]).tolist() == [max(1, hundredths * n // 100) for n in (7, 40, 100)]
        assert np.all(np.diff(rows) > 0)
        assert smaller <= set(rows)
        smaller = set(rows)
    few = share(labels, names, 0.05, draw, repeat)
    assert set(few) <= set(shots(labels, names, 5, 0, draw, repeat)[0])  # 1, 2 and 5 rows
    assert share(labels, names, 1.0, draw, repeat).tolist() == list(range(147))


def test_a_long_tail_falls_as_its_formula_says_and_is_nested() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 270))
    names = ("a", "b", "c", "d")
    # 270 · 27^(−c/3) by hand; 270 / 8 = 33.75 for c = 3 of ratio 8, whose steps are 2
    counts = {1: [270] * 4, 8: [270, 135, 67, 33], 27: [270, 90, 30, 10]}
    larger = set(range(len(labels)))
    for ratio, wanted in counts.items():
        rows = long_tail(labels, names, ratio, draw=1)
        assert sorted(np.bincount(labels[rows]), reverse=True) == wanted
        assert set(rows) <= larger
        larger = set(rows)
    heads = {int(np.bincount(labels[long_tail(labels, names, 27, draw)]).argmax()) for draw in range(20)}
    assert heads == {0, 1, 2, 3}


def test_a_long_tail_takes_as_much_as_unequal_classes_allow() -> None:
    labels = np.repeat([0, 1], [10, 100])
    found = {tuple(np.bincount(labels[long_tail(labels, ("a", "b"), 10, draw)])) for draw in range(20)}
    assert found == {(10, 1), (10, 100)}  # the small class leads with all of its rows, or ends the tail with them
    assert np.bincount(labels[long_tail(labels, ("a", "b"), 1, 0)]).tolist() == [10, 10]


def test_a_tail_without_rows_names_the_class_and_what_is_possible() -> None:
    labels = np.repeat(np.arange(3), 12)
    with pytest.raises(
        UsageError, match=r"imbalance of 100 leaves class '.' without .* largest has 12.*ratios: \[12\]"
    ):
        long_tail(labels, ("a", "b", "c"), 100, 0)
    assert np.bincount(labels[long_tail(labels, ("a", "b", "c"), 12, 0)]).min() == 1


@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6), ratio=st.floats(1.5, 60), draw=st.integers(0, 9)
)
def test_the_imbalance_that_is_advised_is_possible_in_every_draw(
    sizes: list[int], ratio: float, draw: int
) -> None:
    labels, names = np.repeat(np.arange(len(sizes)), sizes), [f"c{i}" for i in range(len(sizes))]
    try:
        long_tail(labels, names, ratio, draw)
    except UsageError as error:
        typed = yaml.safe_load(re.search(r"\{.*\}", str(error))[0])  # type: ignore[index]
        (advised,) = Imbalance.model_validate(typed).ratios
        assert advised < ratio
        for other in range(10):
            counts = np.bincount(labels[long_tail(labels, names, advised, other)], minlength=len(sizes))
            assert counts.min() >= 1
            assert counts.max() >= advised * counts.min()


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


def test_a_class_without_a_row_is_no_matter_of_the_ratio() -> None:
    with pytest.raises(UsageError, match="Class 'b' has no training row to be imbalanced"):
        long_tail(np.array([0, 0, 2]), ["a", "b", "c"], 1, 0)
