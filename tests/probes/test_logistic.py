"""The batched solver against scikit-learn's tightly converged optimum, in float64."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from monoeval.probes.codes import TrainingCodes
from monoeval.probes.logistic import solve_grid

GRID = [10.0**k for k in range(-6, 2)]


def clusters(n, width, n_classes, apart, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    return rng.normal(size=(n_classes, width))[labels] * apart + rng.normal(size=(n, width)), labels


def case(name):
    """Codes, labels in 0..3, row weights."""
    rng = np.random.default_rng(1)
    codes, labels = clusters(240, 16, 4, {"separable": 4.0, "noisy": 1.0}.get(name, 0.5))
    weights = np.ones(len(labels))
    if name == "collinear":
        codes = np.c_[codes, codes[:, :8] * 1.001, codes[:, :4] + codes[:, 4:8]]
    elif name == "heavy-tailed":
        codes = codes * rng.standard_t(1.5, size=(len(codes), 1))
    elif name == "constant column":
        codes[:, 3] = 7.0
    elif name == "fewer rows than columns":
        codes, labels = clusters(40, 60, 4, 0.3)
        weights = np.ones(len(labels))
    elif name == "noisy":
        labels = np.where(rng.random(len(labels)) < 0.6, rng.integers(0, 4, len(labels)), labels)
    elif name == "weighted":
        weights = rng.exponential(size=len(labels)) * (rng.random(len(labels)) < 0.7)
    elif name == "missing class":
        labels = np.where(labels == 2, 1, labels)
    elif name == "scales":
        codes = codes * 10.0 ** -np.linspace(0, 4, codes.shape[1]) + 100
    codes = codes - codes.mean(0)
    codes = codes / np.sqrt((codes**2).sum(1).mean()) + 0.5
    return codes.astype(np.float32), labels, weights.astype(np.float32)


CASES = [
    "clusters",
    "separable",
    "collinear",
    "heavy-tailed",
    "constant column",
    "fewer rows than columns",
    "noisy",
    "weighted",
    "missing class",
    "scales",
]


def objective(codes, labels, weights, l2, w, b):
    logit = codes @ w.T + b
    loss = np.logaddexp.reduce(logit, 1) - logit[np.arange(len(labels)), labels]
    return (weights * loss)[weights > 0].sum() / weights.sum() + l2 / 2 * (w**2).sum()


def optimum(codes, labels, weights, l2, n_classes):
    used = weights > 0
    mean = codes.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1 / (l2 * weights.sum()), tol=1e-10, max_iter=10000)
        model.fit((codes - mean)[used], labels[used], sample_weight=weights[used])
    w, b = np.zeros((n_classes, codes.shape[1])), np.full(n_classes, -np.inf)
    w[model.classes_], b[model.classes_] = model.coef_, model.intercept_ - model.coef_ @ mean
    return w, b


def fit(codes, labels, weights, grid=GRID, n_classes=4, **more):
    return solve_grid(
        TrainingCodes(torch.from_numpy(codes)),
        torch.from_numpy(labels)[None],
        grid,
        n_classes,
        row_weights_pn=torch.from_numpy(weights)[None],
        **more,
    )


@pytest.mark.parametrize("name", CASES)
def test_reaches_the_optimum_on_every_l2(name):
    codes, labels, weights = case(name)
    solution = fit(codes, labels, weights)
    codes, weights = codes.astype(float), weights.astype(float)
    assert solution.converged_pl.all()
    for p, l2 in enumerate(GRID):
        w, b = optimum(codes, labels, weights, l2, 4)
        best = objective(codes, labels, weights, l2, w, b)
        ours_w = solution.weights_plcm[0, p].double().numpy()
        ours_b = solution.intercept_plc[0, p].double().numpy()
        ours = objective(codes, labels, weights, l2, ours_w, ours_b)
        assert ours - best <= 2e-5 * best
        assert float(solution.objective_pl[0, p]) == pytest.approx(best, rel=3e-5)
        theirs = codes @ w.T + b
        top = np.sort(theirs, 1)
        clear = top[:, -1] - top[:, -2] > 0.02 * (1 + np.abs(top[:, -1]))
        assert ((codes @ ours_w.T + ours_b).argmax(1) == theirs.argmax(1))[clear].all()


def test_a_missing_class_is_never_predicted():
    codes, labels, weights = case("missing class")
    solution = fit(codes, labels, weights)
    assert (solution.intercept_plc[:, :, 2] == -torch.inf).all()
    assert (solution.weights_plcm[:, :, 2] == 0).all()
    assert solution.intercept_plc[:, :, [0, 1, 3]].isfinite().all()


def test_neighbours_in_the_batch_change_nothing_that_matters_and_reruns_nothing_at_all():
    codes, labels, weights = case("noisy")
    all_of_them, again, alone = (fit(codes, labels, weights, grid) for grid in (GRID, GRID, GRID[2:3]))
    assert torch.equal(all_of_them.weights_plcm, again.weights_plcm)
    assert torch.allclose(all_of_them.objective_pl[0, 2], alone.objective_pl[0, 0], rtol=1e-5)


def test_turns_and_chunks_equal_one_pass(monkeypatch):
    codes, labels, weights = case("clusters")
    whole = fit(codes, labels, weights)
    monkeypatch.setattr("monoeval.probes.logistic.WORKING_SET", 4 * 4 * 17 * 28 * 3)
    monkeypatch.setattr("monoeval.probes.rows.CHUNK", 1)
    monkeypatch.setattr("monoeval.probes.rows.FEWEST_ROWS", 50)
    parts = fit(codes, labels, weights)
    assert torch.allclose(whole.objective_pl, parts.objective_pl, rtol=1e-5)


def test_wide_codes_without_a_rotation(monkeypatch):
    monkeypatch.setattr("monoeval.probes.rows.WIDEST_ROTATION", 4)
    codes, labels, weights = case("clusters")
    plain = fit(codes, labels, weights, [1e-3])
    w, b = optimum(codes.astype(float), labels, weights, 1e-3, 4)
    best = objective(codes.astype(float), labels, weights, 1e-3, w, b)
    assert float(plain.objective_pl) == pytest.approx(best, rel=2e-5)


def test_a_failed_eigendecomposition_costs_speed_and_nothing_else(monkeypatch):
    # what LAPACK's float32 routine did, without a word, on codes with many dead latents
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (a[..., 0] * torch.nan, a * torch.nan))
    codes, labels, weights = case("clusters")
    plain = fit(codes, labels, weights, [1e-3])
    w, b = optimum(codes.astype(float), labels, weights, 1e-3, 4)
    best = objective(codes.astype(float), labels, weights, 1e-3, w, b)
    assert float(plain.objective_pl) == pytest.approx(best, rel=2e-5)
