"""Coherence, stability and explained variance against brute force, planted permutations and numpy."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_codes import codes_of, held

from monoeval.adapters.base import Codes
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import NoSettings
from monoeval.adapters.simple import UnitLength
from monoeval.errors import MonoevalError
from monoeval.metrics import dictionary, streams
from monoeval.metrics.dictionary import coherence, explained_variance, stability


def unit(rows: int, width: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, width))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_coherence_against_all_pairs(block, monkeypatch):
    monkeypatch.setattr(dictionary, "BLOCK", block)
    rows = unit(23, 6)
    cosines = np.abs(rows @ rows.T)
    np.fill_diagonal(cosines, 0)
    scaled = torch.from_numpy(rows * np.arange(1, 24)[:, None])
    with_zeros = torch.cat([scaled, torch.zeros(4, 6)])
    for directions in (scaled, with_zeros):
        found = coherence(directions)
        assert found.mean == pytest.approx(cosines.sum() / (23 * 22), rel=1e-5)
        assert found.nearest == pytest.approx(cosines.max(1).mean(), rel=1e-5)
        assert found.max == pytest.approx(cosines.max(), rel=1e-5)


def test_coherence_at_its_ends():
    assert coherence(torch.eye(5)) == dictionary.Coherence(0, 0, 0)
    alike = coherence(torch.tensor([[1.0, 2], [-2, -4]]))
    assert (alike.mean, alike.nearest, alike.max) == pytest.approx((1, 1, 1))
    assert np.isnan([coherence(torch.eye(1)).mean, coherence(torch.zeros(3, 2)).max]).all()


def test_random_directions_are_as_coherent_as_the_docstring_says():
    assert coherence(torch.from_numpy(unit(300, 64))).mean == pytest.approx(np.sqrt(2 / (np.pi * 64)), rel=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000), st.booleans())
def test_stability_against_every_matching(m, other, seed, either_sign):
    a, b = unit(m, 3, seed), unit(other, 3, seed + 1)
    cosines = np.abs(a @ b.T) if either_sign else a @ b.T
    if m > other:
        cosines = cosines.T
    rows = range(min(m, other))
    best = max(np.mean([cosines[i, p[i]] for i in rows]) for p in permutations(range(max(m, other)), len(rows)))
    found = stability(torch.from_numpy(a), torch.from_numpy(b), either_sign=either_sign)
    assert found.cosine == pytest.approx(best, abs=1e-6)
    assert found.exact


@pytest.mark.parametrize("widest", [500, 20])  # the exact matching, and the greedy one
def test_the_same_rows_in_another_order_are_found(widest, monkeypatch):
    monkeypatch.setattr(dictionary, "WIDEST_EXACT", widest)
    monkeypatch.setattr(dictionary, "BLOCK", 64)
    rng = np.random.default_rng(0)
    rows = unit(150, 32)
    shuffled = rng.permutation(rows) * rng.uniform(0.5, 3, (150, 1))
    found = stability(torch.from_numpy(rows), torch.from_numpy(shuffled))
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert 0 < found.chance < 0.5
    assert found.exact == (widest == 500)
    turned = torch.from_numpy(shuffled * rng.choice([-1, 1], (150, 1)))
    assert stability(torch.from_numpy(rows), turned, either_sign=True).cosine == pytest.approx(1, abs=1e-6)
    assert stability(torch.from_numpy(rows), turned).cosine < 0.9
    assert stability(torch.from_numpy(rows), turned, seed=1).chance != found.chance


@pytest.mark.parametrize("width", [4, 40])
def test_the_greedy_matching_is_close_to_the_best_and_never_above(width, monkeypatch):
    a, b = torch.from_numpy(unit(200, width, 1)), torch.from_numpy(unit(230, width, 2))
    best = stability(a, b)
    monkeypatch.setattr(dictionary, "WIDEST_EXACT", 10)
    monkeypatch.setattr(dictionary, "BLOCK", 32)
    found = stability(a, b)
    assert best.cosine - 0.05 < found.cosine <= best.cosine + 1e-6


def test_chance_is_a_dictionary_of_random_directions():
    found = stability(torch.from_numpy(unit(40, 16, 1)), torch.from_numpy(unit(40, 16, 2)))
    assert found.cosine == pytest.approx(found.chance, abs=0.05)


@pytest.mark.parametrize("others", [0, 90])
def test_equal_rows_do_not_stall_the_matching(others, monkeypatch):
    monkeypatch.setattr(dictionary, "WIDEST_EXACT", 16)
    calls = []
    nearest = dictionary._nearest
    monkeypatch.setattr(dictionary, "_nearest", lambda *args: calls.append(1) or nearest(*args))
    rows = torch.cat([torch.ones(400, 24), torch.from_numpy(unit(others, 24)).float()])
    assert stability(rows, rows).cosine == pytest.approx(1, abs=1e-6)
    assert len(calls) < 40


def test_a_small_dictionary_in_a_large_one(monkeypatch):
    monkeypatch.setattr(dictionary, "WIDEST_EXACT", 20)
    large = torch.from_numpy(unit(100, 16))
    for found in (stability(large[30:37], large), stability(large, large[30:37])):
        assert found.cosine == pytest.approx(1, abs=1e-6)
        assert not found.exact


def test_zeros_match_nothing_and_what_cannot_be_matched_is_said():
    rows = torch.eye(4)
    gone = rows.clone()
    gone[0] = 0
    assert stability(rows, gone).cosine == pytest.approx(0.75)
    assert np.isnan(stability(rows[:0], rows).cosine)
    with pytest.raises(MonoevalError, match="4 and 3 features"):
        stability(rows, rows[:, :3])
    with pytest.raises(MonoevalError, match="not finite"):
        stability(rows, rows / 0)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("shift", [0, 3e6])
def test_explained_variance_against_numpy(kind, shift, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_ENTRIES", 4 * 9)
    x = (np.random.default_rng(0).normal(size=(50, 4)) + shift).astype(np.float32)
    expected = 1 - ((x - np.float32(0.9) * x).astype(float) ** 2).sum() / (50 * x.astype(float).var(0).sum())
    assert explained_variance(codes_of(x, kind, shrink=0.9)) == pytest.approx(expected, rel=1e-4)
    rows = np.arange(5, 30)
    assert explained_variance(codes_of(x, kind, 0.9), rows) == pytest.approx(
        explained_variance(codes_of(x[rows], kind, 0.9))
    )


def test_explained_variance_is_undefined_without_a_way_back_or_a_spread():
    assert np.isnan(explained_variance(codes_of(np.eye(3))))
    assert np.isnan(explained_variance(codes_of(np.full((5, 2), 0.1), shrink=1.0)))
    assert np.isnan(explained_variance(codes_of(np.eye(3), shrink=1.0), np.arange(0)))
    assert explained_variance(codes_of(np.eye(3), shrink=1.0)) == 1
    features = held(np.eye(4))
    adapter = UnitLength(NoSettings()).fit(TrainingRows(features, None, torch.device("cpu")), seed=0)
    assert np.isnan(explained_variance(Codes(features, adapter, torch.device("cpu"))))
