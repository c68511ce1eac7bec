"""Drift of codes against sets of active latents, and numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_codes import codes_of, planted

from monoeval.errors import MonoevalError
from monoeval.metrics import streams
from monoeval.metrics.dictionary import explained_variance
from monoeval.metrics.drift import drift

KINDS = ("dense", "sparse", "mixed")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(KINDS), st.sampled_from(KINDS), st.integers(1, 30))
def test_against_sets(seed, kind, other_kind, rows_a_chunk):
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=(25, 8)) * (rng.random((25, 8)) < 0.4)
    corrupted = np.where(rng.random((25, 8)) < 0.5, clean, rng.normal(size=(25, 8)))
    corrupted *= rng.random((25, 8)) < 0.7
    clean[:, 0] = 1e-7  # never active
    expected = []
    for one, two in zip(clean.astype(np.float32), corrupted.astype(np.float32), strict=True):
        here, there = (set(np.flatnonzero(np.abs(z) > 1e-5 * np.linalg.norm(z))) for z in (one, two))
        jaccard = len(here & there) / len(here | there) if here | there else 1.0
        lengths = np.linalg.norm(one) * np.linalg.norm(two)
        cosine = one @ two / lengths if lengths else float(np.linalg.norm(one) == np.linalg.norm(two))
        expected.append((jaccard, cosine, len(here), len(there)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK_ENTRIES", 8 * rows_a_chunk)
        found = drift(codes_of(clean, kind), codes_of(corrupted, other_kind))
    measured = (found.jaccard, found.cosine, found.l0_clean, found.l0_corrupted)
    assert measured == pytest.approx(np.mean(expected, axis=0), rel=1e-5)
    assert found.l0_shift == found.l0_corrupted - found.l0_clean


def test_by_hand():
    clean = [[3.0, 4.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    corrupted = [[3.0, 0.0, 4.0], [2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    for kind in KINDS:
        found = drift(codes_of(clean, kind), codes_of(corrupted, kind))
        assert found.jaccard == pytest.approx((1 / 3 + 1 + 0 + 1) / 4)
        assert found.cosine == pytest.approx((9 / 25 + 1 + 0 + 1) / 4)
        assert (found.l0_clean, found.l0_corrupted) == (3 / 4, 4 / 4)
        assert np.isnan(found.explained_shift)


@pytest.mark.parametrize("kind", KINDS)
def test_explained_variances_and_rows(kind):
    rng = np.random.default_rng(0)
    clean, _ = planted()
    corrupted = clean + rng.normal(size=clean.shape)
    rows = rng.permutation(120)[:50]
    one, two = codes_of(clean, kind, shrink=0.8), codes_of(corrupted, kind, shrink=0.8)
    found = drift(one, two, rows)
    assert found.explained_clean == pytest.approx(explained_variance(one, rows))
    assert found.explained_corrupted == pytest.approx(explained_variance(two, rows))
    assert found.explained_shift == found.explained_corrupted - found.explained_clean != 0
    assert found.jaccard == pytest.approx(drift(codes_of(clean[rows]), codes_of(corrupted[rows])).jaccard)


def test_nothing_moves_where_nothing_changes():
    clean, _ = planted()
    found = drift(codes_of(clean, "sparse", shrink=1.0), codes_of(clean, "dense", shrink=1.0))
    assert (found.jaccard, found.cosine, found.explained_clean) == pytest.approx((1, 1, 1))
    assert found.l0_shift == found.explained_shift == 0


def test_no_rows_and_unlike_codes():
    codes = codes_of(np.eye(3), shrink=1.0)
    empty = drift(codes, codes, np.arange(0))
    assert np.isnan([empty.jaccard, empty.cosine, empty.l0_clean, empty.explained_clean]).all()
    with pytest.raises(MonoevalError, match="3 by 3 and corrupted ones 2 by 3"):
        drift(codes, codes_of(np.eye(3)[:2]))
