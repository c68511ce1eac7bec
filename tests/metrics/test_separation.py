"""Effective rank, scatter and margins against numpy and numbers worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_codes import codes_of, planted

from monoeval.errors import MonoevalError
from monoeval.metrics import separation, streams
from monoeval.metrics.latents import measure
from monoeval.metrics.separation import margin_quantiles, margins, scatter_ratio

KINDS = ("dense", "sparse", "mixed")


def effective_rank(codes: np.ndarray) -> float:
    share = np.linalg.svd(codes.astype(np.float64), compute_uv=False)
    share = share[share > 1e-6 * share[0]] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widest", [30, 29])  # the Gram of the latents, and that of the rows
def test_effective_rank_against_the_singular_values(kind, widest, monkeypatch):
    monkeypatch.setattr(separation, "WIDEST_GRAM", widest)
    monkeypatch.setattr(streams, "CHUNK_ENTRIES", 30 * 11)
    codes, labels = planted()
    found = measure(codes_of(codes, kind), labels, 4)
    assert found.effective_rank == pytest.approx(effective_rank(codes), rel=1e-6)
    assert found.effective_rank_bound == 30


@pytest.mark.parametrize("kind", KINDS)
def test_effective_rank_of_a_sample_is_that_of_so_many_rows(kind, monkeypatch):
    monkeypatch.setattr(separation, "WIDEST_GRAM", 10)
    monkeypatch.setattr(separation, "SAMPLED_ROWS", 12)
    monkeypatch.setattr(streams, "CHUNK_ENTRIES", 30 * 11)
    codes, labels = planted()
    found = measure(codes_of(codes, kind), labels, 4)
    assert found.effective_rank_bound == 12
    assert 1 < found.effective_rank < 12
    other = measure(codes_of(codes, kind), labels, 4, seed=1)
    assert other.effective_rank != found.effective_rank


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_rounding_adds_no_rank(kind):
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 5, size=(200, 3)) @ rng.integers(0, 3, size=(3, 80))
    found = measure(codes_of(codes, kind), np.zeros(200), 1)
    assert found.effective_rank == pytest.approx(effective_rank(codes), rel=1e-9)
    assert found.effective_rank < 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows_a_chunk", [1, 13, 500])
def test_scatter_against_numpy(kind, rows_a_chunk, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_ENTRIES", 30 * rows_a_chunk)
    codes, labels = planted()
    z = codes.astype(float)
    means = np.stack([z[labels == c].mean(0) for c in range(4)])
    between = sum((labels == c).sum() * ((means[c] - z.mean(0)) ** 2).sum() for c in range(4))
    within = ((z - means[labels]) ** 2).sum()
    assert scatter_ratio(codes_of(codes, kind), labels, 4) == pytest.approx(between / within)
    assert scatter_ratio(codes_of(codes, kind), labels, 9) == pytest.approx(
        between / within
    )  # classes without a row
    rows = np.flatnonzero(labels < 2)
    alone = scatter_ratio(codes_of(codes[rows]), labels[rows], 4)
    assert scatter_ratio(codes_of(codes, kind), labels[rows], 4, rows) == pytest.approx(alone)


def test_scatter_under_random_labels_is_what_the_docstring_says():
    rng = np.random.default_rng(0)
    codes, labels = codes_of(rng.normal(size=(60, 20))), np.arange(60) % 4
    found = np.mean([scatter_ratio(codes, rng.permutation(labels), 4) for _ in range(100)])
    assert found == pytest.approx(3 / 56, rel=0.05)


@pytest.mark.parametrize(
    ("codes", "labels", "ratio"),
    [
        ([[1.0], [1.0], [3.0], [3.0]], [0, 0, 1, 1], np.inf),  # classes are points
        ([[1.0], [3.0], [1.0], [3.0]], [0, 0, 1, 1], 0),  # means coincide
        ([[1.0], [2.0]], [1, 1], np.nan),  # one class
        (np.tile(np.random.default_rng(1).normal(size=9), (7, 1)), [0, 1] * 3 + [0], np.nan),  # equal rows
        ([[0.0], [0.0], [0.0]], [0, 1, 1], np.nan),
    ],
)
def test_scatter_at_its_ends(codes, labels, ratio):
    for kind in ("dense", "sparse"):
        assert scatter_ratio(codes_of(codes, kind), labels, 2) == pytest.approx(ratio, nan_ok=True)


def test_scatter_of_no_rows_is_an_error():
    with pytest.raises(MonoevalError, match="at least one row"):
        scatter_ratio(codes_of(np.ones((3, 2))), [], 2, np.arange(0))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 1000))
def test_margins_are_positive_where_the_prediction_is_right(rows, classes, seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)
    before = logits.copy()
    found = margins(logits, labels)
    assert np.array_equal(logits, before)
    assert np.array_equal(found > 0, logits.argmax(1) == labels)
    others = [max(row[c] for c in range(classes) if c != y) for row, y in zip(logits, labels, strict=True)]
    assert found == pytest.approx(logits[np.arange(rows), labels] - others)


def test_quantiles_of_margins_by_hand():
    logits = np.array([[3.0, 1, 0], [0, 0, 2], [1, -np.inf, -np.inf], [0, 1, -np.inf]])
    labels = [0, 1, 0, 2]  # margins 2, -2, inf, -inf
    found = margins(logits, labels)
    assert found.tolist() == [2, -2, np.inf, -np.inf]
    assert margin_quantiles(found, [0.25, 0.5, 0.75, 1]).tolist() == [-np.inf, -2, 2, np.inf]
    assert np.isnan(margin_quantiles(margins(np.empty((0, 3)), []))).all()
