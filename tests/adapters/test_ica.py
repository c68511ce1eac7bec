"""FastICA against scikit-learn, planted sources and the definition."""

import logging

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA, FastICA

from monoeval.adapters import ica
from monoeval.adapters.ica import fast_ica, orthogonal
from monoeval.adapters.registry import METHODS, build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.errors import MonoevalError, UsageError

CPU = torch.device("cpu")


def sources(rows: int = 4000) -> np.ndarray:
    """Independent, one of each shape: skewed, heavy-tailed, uniform and two-valued; mean zero, variance one."""
    draws = np.random.default_rng(0)
    raw = [draws.exponential(size=rows), draws.laplace(size=rows), draws.random(rows), draws.integers(0, 2, rows)]
    table = np.stack(raw, axis=1)
    return (table - table.mean(0)) / table.std(0)


def mixed(rows: int = 4000, width: int = 6) -> np.ndarray:
    return (sources(rows) @ np.random.default_rng(1).normal(size=(4, width)) + 2).astype(np.float32)


def fitted(features, rows=None, seed: int = 0, **params):
    return build(AdapterSpec(method="ica", params=params)).fit(TrainingRows(features, rows, CPU), seed=seed)


def matched(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """|correlation| of the best one-to-one pairing of columns."""
    cross = np.abs(np.corrcoef(one.T, two.T)[: one.shape[1], one.shape[1] :])
    return cross[linear_sum_assignment(-cross)]


def test_planted_sources_are_recovered_as_scikit_learn_recovers_them(feature_set):
    x = mixed()
    adapter = fitted(feature_set(x))
    codes = adapter.encode(torch.from_numpy(x)).numpy()
    assert adapter.width == 4
    assert matched(codes, sources()).min() > 0.99
    theirs = FastICA(4, whiten="unit-variance", random_state=3, tol=1e-6).fit_transform(x.astype(np.float64))
    assert matched(codes, theirs).min() > 0.9995
    assert matched(PCA(4).fit_transform(x), sources()).min() < 0.9  # whitening alone does not
    assert adapter.report()["converged"] == 1
    assert adapter.report()["rows"] == 4000


def test_codes_are_white_and_lean_to_the_side_of_the_longer_tail(feature_set):
    x = mixed()
    codes = fitted(feature_set(x)).encode(torch.from_numpy(x)).double().numpy()
    np.testing.assert_allclose(np.cov(codes.T, bias=True), np.eye(4), atol=1e-3)
    assert ((codes**3).mean(0) > -1e-4).all()
    assert (codes < 0).any(axis=0).all()


def test_the_way_back_is_that_of_pca(feature_set):
    x = mixed()
    tensor = torch.from_numpy(x)
    whole = fitted(feature_set(x))
    torch.testing.assert_close(whole.decode(whole.encode(tensor)), tensor, atol=1e-3, rtol=1e-3)
    two, oracle = fitted(feature_set(x), components=2), PCA(2).fit(x)
    assert two.directions.shape == (2, 6)
    projected = oracle.inverse_transform(oracle.transform(x))
    np.testing.assert_allclose(two.decode(two.encode(tensor)), projected, atol=1e-3)


def test_one_step_is_the_stated_fixed_point():
    draws = np.random.default_rng(2)
    x, start = draws.laplace(size=(50, 3)), np.linalg.qr(draws.normal(size=(3, 3)))[0]
    expected = np.zeros((3, 3))
    for j, w in enumerate(start):
        for row in x:
            bent = np.tanh(w @ row)
            expected[j] += (row * bent - (1 - bent**2) * w) / len(x)
    expected = np.linalg.inv(np.real(sqrtm(expected @ expected.T))) @ expected
    rotation, steps, change = fast_ica(torch.from_numpy(x), torch.from_numpy(start), 1)
    np.testing.assert_allclose(rotation, expected, atol=1e-9)
    assert steps == 1
    assert change == pytest.approx(np.abs(1 - np.abs((expected * start).sum(1))).max(), abs=1e-9)


def test_the_nearest_orthogonal_matrix():
    matrix = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.inv(np.real(sqrtm((matrix @ matrix.T).numpy()))) @ matrix.numpy()
    np.testing.assert_allclose(orthogonal(matrix), expected, atol=1e-9)


def test_the_seed_decides_the_codes_and_not_what_they_span(feature_set):
    x = mixed(1000)
    features = feature_set(x)
    first, again, other = (fitted(features, seed=seed).state() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["weight"], other["weight"])
    projectors = [state["weight"] @ state["back"] for state in (first, other)]
    torch.testing.assert_close(*projectors, atol=1e-4, rtol=1e-4)


def test_rows_beyond_the_limit_are_left_out_of_the_rotation_only(feature_set, monkeypatch):
    x = mixed()
    whole = fitted(feature_set(x))
    monkeypatch.setattr(ica, "MOST_ROWS", 1500)
    part = fitted(feature_set(x))
    assert part.report()["rows"] == 1500
    assert part.report()["explained_variance"] == whole.report()["explained_variance"]
    assert matched(part.encode(torch.from_numpy(x)).numpy(), sources()).min() > 0.98


def test_stopping_short_is_recorded_and_said(feature_set, caplog):
    noise = np.random.default_rng(0).normal(size=(300, 8))
    with caplog.at_level(logging.WARNING, "monoeval"):
        adapter = fitted(feature_set(noise), max_steps=2)
    assert "ica did not converge: the last of 2 steps" in caplog.text
    report = adapter.report()
    assert (report["converged"], report["steps"]) == (0, 2)
    assert report["change"] > 1e-4


def test_what_cannot_be_fitted_is_one_sentence(feature_set):
    x = mixed(30)
    x[[2, 5], 1] = np.nan
    with pytest.raises(MonoevalError, match="2 of 30 training rows have features that are not finite"):
        fitted(feature_set(x))
    fitted(feature_set(x), np.arange(6, 30))
    with pytest.raises(MonoevalError, match="All 3 features are constant"):
        fitted(feature_set(np.ones((10, 3))))
    with pytest.raises(UsageError, match="max_steps cannot be 0"):
        fitted(feature_set(x), max_steps=0)


def test_it_is_a_control_with_a_seed():
    assert METHODS["ica"].is_control
    assert METHODS["ica"].seeded
