"""Label smoothing, GCE and SCE: stationary points of scipy, their limits, and what they are for."""

import numpy as np
import pytest
import torch
from textbook import Textbook, clusters

from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.logistic import minimise, solve_grid
from monoeval.probes.objective import Loss, Objective
from monoeval.probes.problem import Problem
from monoeval.probes.rows import Shared
from monoeval.probes.spec import GCE, SCE, LabelSmoothing, Logistic

LOSSES = {
    "label smoothing": {"smoothing": 0.1},
    "gce": {"q": 0.7},
    "mae": {"q": 1.0},
    "sce": {"alpha": 6.0, "beta": 0.1},
    "sce, mostly reverse": {"alpha": 0.1, "beta": 1.0},
}


def noisy(labels, rate, n_classes, seed=3):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(labels)) < rate, rng.integers(0, n_classes, len(labels)), labels)


def fit(codes, labels, l2s, n_classes, weights=None, **loss):
    return solve_grid(
        TrainingCodes(torch.from_numpy(codes)),
        torch.from_numpy(labels)[None],
        l2s,
        n_classes,
        row_weights_pn=None if weights is None else torch.from_numpy(weights)[None],
        loss=Loss(**loss),
        tolerance=1e-6,
    )


def left(grid, position=0):
    return grid.weights_plcm[0, position].double().numpy(), grid.intercept_plc[0, position].double().numpy()


def accuracy(grid, codes, labels, position=0):
    w, b = left(grid, position)
    return float(((codes @ w.T + b).argmax(1) == labels).mean())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("l2", [1e-3, 1e-2])
def test_ends_where_scipy_does_from_the_same_start(loss, l2):
    codes, labels = clusters(160, 8, 4, 1.0)
    labels = noisy(np.where(labels == 2, 1, labels), 0.3, 2)
    weights = np.random.default_rng(0).exponential(size=160).astype(np.float32)
    found = fit(codes, labels, [l2], 4, weights, **LOSSES[loss])
    assert found.converged_pl.all()
    textbook = Textbook(codes, labels, weights, 4, **LOSSES[loss])
    start = Textbook(codes, labels, weights, 4).minimise(l2)
    w, b = textbook.minimise(l2, start)
    value = textbook.value(w, b, l2)
    assert float(found.objective_pl) == pytest.approx(value, rel=2e-5)
    assert textbook.value(*left(found), l2) == pytest.approx(value, rel=2e-5)
    assert np.linalg.norm(left(found)[0] - w) <= 0.02 * np.linalg.norm(w)
    by_w, by_b = textbook.gradient(*left(found))
    assert np.abs(by_w + l2 * left(found)[0]).max() < 1e-3 * textbook.loss(np.zeros_like(w), np.zeros_like(b))
    assert np.abs(by_b).max() < 1e-3


def test_gce_is_cross_entropy_where_q_vanishes_and_absolute_error_at_one():
    codes, labels = clusters(200, 8, 4, 0.7)
    plain, limit = fit(codes, labels, [1e-2], 4), fit(codes, labels, [1e-2], 4, q=1e-3)
    assert (limit.weights_plcm - plain.weights_plcm).norm() <= 0.01 * plain.weights_plcm.norm()
    assert float(limit.objective_pl) == pytest.approx(float(plain.objective_pl), rel=2e-3)
    absolute = fit(codes, labels, [1e-2], 4, q=1.0)
    w, b = left(absolute)
    p = torch.softmax(torch.from_numpy(codes @ w.T + b), 1).numpy()
    mean = (1 - p[np.arange(200), labels]).mean() + 0.01 / 2 * (w**2).sum()
    assert float(absolute.objective_pl) == pytest.approx(mean, rel=1e-5)


def test_sce_without_its_reverse_part_is_cross_entropy():
    codes, labels = clusters(200, 8, 4, 0.7)
    plain, scaled = fit(codes, labels, [1e-2], 4), fit(codes, labels, [3e-2], 4, alpha=3.0)
    assert (scaled.weights_plcm - plain.weights_plcm).norm() <= 0.01 * plain.weights_plcm.norm()
    assert torch.isinf(scaled.gap_pl).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_path_over_l2_does_not_get_stuck_where_it_began(loss):
    # at large λ all probabilities are alike and gradients of robust losses all but vanish
    codes, labels = clusters(600, 24, 20, 2.0)
    path = fit(codes, labels, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], 20, **LOSSES[loss])
    assert path.converged_pl.all()
    for position, l2 in enumerate([1e-5, 1e-4]):
        assert accuracy(path, codes, labels, position) > 0.99
        alone = fit(codes, labels, [l2], 20, **LOSSES[loss])
        assert float(path.objective_pl[0, position]) == pytest.approx(float(alone.objective_pl), rel=1e-2)


@pytest.mark.parametrize("q", [None, 0.7])
def test_rows_in_use_may_all_lie_where_the_first_pass_reads_no_curvature(q, monkeypatch):
    for module in ("rows", "objective"):
        monkeypatch.setattr(f"monoeval.probes.{module}.CHUNK", 1)
    monkeypatch.setattr("monoeval.probes.rows.FEWEST_ROWS", 64)
    codes, labels = clusters(384, 8, 4, 1.0)
    weights = np.zeros(384, np.float32)
    weights[64:192] = 1
    found, alone = fit(codes, labels, [1e-3], 4, weights, q=q), fit(codes[64:192], labels[64:192], [1e-3], 4, q=q)
    assert found.converged_pl.all()
    assert float(found.objective_pl) == pytest.approx(float(alone.objective_pl), rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gce_bears_noise_that_cross_entropy_does_not(seed):
    codes, labels = clusters(2400, 32, 10, 1.5, seed)
    given = noisy(labels[:1200], 0.6, 10, seed)
    grid = [1e-5, 1e-4, 1e-3]
    scores = {}
    for q in (None, 0.7):
        found = fit(codes[:1200], given, grid, 10, q=q)
        scores[q] = max(accuracy(found, codes[1200:], labels[1200:], position) for position in range(3))
    assert scores[0.7] >= scores[None]
    assert scores[0.7] > 0.95


@pytest.mark.parametrize(
    "spec", [Logistic(), LabelSmoothing(), GCE(), GCE(q=1.0), SCE()], ids=["ce", "smoothing", "gce", "mae", "sce"]
)
def test_tuned_on_noisy_labels_each_finds_the_classes(spec):
    codes, labels = clusters(900, 24, 6, 1.5)
    given = noisy(labels[:300], 0.4, 6)
    spec = spec.model_copy(update={"l2": tuple(10.0**k for k in range(-5, 1))})
    probes = fit_probes(TrainingCodes(torch.from_numpy(codes)), [Problem(np.arange(300), given)], 6, spec)
    choice = probes.choices[0]
    predicted = probes.logits(torch.from_numpy(codes[300:]), [0])[:, 0].argmax(1).numpy()
    assert (predicted == labels[300:]).mean() > 0.9
    assert choice.converged
    # a bound is proven for the convex ones, and none is claimed for the others
    assert ("gap" in choice.measures) == isinstance(spec, Logistic | LabelSmoothing)


@pytest.mark.parametrize(
    "l2s", [[10.0**-k for k in range(6)], [3.0**-k for k in range(10)]], ids=["tens", "threes"]
)
@pytest.mark.parametrize("n_classes", [4, 50])
def test_rough_descents_rank_the_l2s_as_exact_ones_do(n_classes, l2s):
    # a first step that is refused far from the optimum once ended them: losses were up to 70 % off
    codes, labels = clusters(1600, 32, n_classes, 1.5)
    weights = torch.zeros(1, 1, 1600)
    weights[..., :800] = 1
    one = torch.ones(1, 1, dtype=torch.float64)
    given = torch.from_numpy(noisy(labels, 0.3, n_classes))[None, None]
    rows = Shared(TrainingCodes(torch.from_numpy(codes)))
    whole = Objective(rows, given, weights, one, n_classes, Loss(), True)
    x = at = None
    judged = []
    for l2 in l2s:
        rough = minimise(whole.at(one * l2), x, at, rough=True)
        x, at = rough.x, rough.at
        exact = minimise(whole.at(one * l2))
        judged.append([float(descent.at.losses[0, 0, 800:].mean()) for descent in (rough, exact)])
    by_rough, by_exact = np.array(judged).T
    assert by_rough.argmin() == by_exact.argmin()
    np.testing.assert_allclose(by_rough, by_exact, rtol=0.02)
