"""Value, gradient, curvature and lower bound of a pass, against float64 written as textbooks do."""

from copy import copy

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from textbook import Textbook, clusters, topk_codes

from monoeval.adapters.base import SparseRows
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.logistic import minimise
from monoeval.probes.objective import Loss, Objective
from monoeval.probes.rows import DenseChunk, RowSpace, Shared

N, WIDTH, C = 60, 5, 4
LOSSES = {
    "logistic": {},
    "label smoothing": {"smoothing": 0.2},
    "gce": {"q": 0.7},
    "mae": {"q": 1.0},
    "sce": {"alpha": 0.5, "beta": 1.0},
}
KINDS = ["dense", "sparse", "few rows"]


def problem(kind="dense", seed=0, missing=True):
    """Training codes, the same as an array, labels without a class 2, and row weights with zeros."""
    rng = np.random.default_rng(seed)
    if kind == "sparse":
        values, indices, labels = topk_codes(N, WIDTH, 3, C, seed)
        held = SparseRows(torch.from_numpy(values), torch.from_numpy(indices), WIDTH)
        codes = held.dense().numpy()
    else:
        codes, labels = clusters(N, WIDTH, C, 0.7, seed)
        codes += 0.3
        held = torch.from_numpy(codes)
    weights = (rng.exponential(size=N) * (rng.random(N) < 0.8)).astype(np.float32)
    weights[:C] = 1
    return TrainingCodes(held), codes, np.where(labels == 2, 1, labels) if missing else labels, weights


def one(codes, labels, weights, l2=0.1, kind="dense", row_losses=False, **loss):
    """The objective of one problem."""
    rows = RowSpace.of(codes, [torch.arange(N)], [N]) if kind == "few rows" else Shared(codes)
    l2_gp = torch.full((1, 1), l2, dtype=torch.float64)
    labels_gpn, weights_gpn = torch.from_numpy(labels)[None, None], torch.from_numpy(weights)[None, None]
    return Objective(rows, labels_gpn, weights_gpn, l2_gp, C, Loss(**loss), row_losses)


def anywhere(objective, seed=0, size=1.0):
    """Random parameters, in the solver's coordinates."""
    shape = (*objective.frequency.shape, objective.rows.variances_gd.shape[1] + 1)
    x = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return objective.adopt(x)


def left(objective, x):
    """Weights and intercepts on the codes, as float64 arrays."""
    w, b = objective.rows.leave(x)
    return w[0, 0].double().numpy(), b[0, 0].double().numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_pass_gives_the_textbooks_loss_and_gradient(loss, kind):
    codes, array, labels, weights = problem(kind)
    objective = one(codes, labels, weights, kind=kind, row_losses=True, **LOSSES[loss])
    textbook = Textbook(array, labels, weights, C, **LOSSES[loss])
    x = anywhere(objective)
    w, b = left(objective, x)
    point = objective(x)
    assert float(point.loss) == pytest.approx(textbook.loss(w, b), rel=1e-5)
    np.testing.assert_allclose(point.losses[0, 0], textbook.losses(w, b), rtol=1e-4, atol=1e-5)
    # the gradient by each coordinate is that along the weights which the coordinate stands for
    n_coordinates = x[0, 0].numel()
    units = torch.eye(n_coordinates).view(1, n_coordinates, *x.shape[2:])
    unit_w, unit_b = (part[0].double().numpy() for part in objective.rows.leave(units))
    by_w, by_b = textbook.gradient(w, b)
    expected = (unit_w * by_w).sum((1, 2)) + (unit_b * by_b).sum(1)
    np.testing.assert_allclose(point.gradient.flatten(), expected, atol=2e-6)
    # and the textbook's own gradient is that of finite differences
    h = 1e-5
    along = [
        (textbook.loss(w + h * dw, b + h * db) - textbook.loss(w - h * dw, b - h * db)) / (2 * h)
        for dw, db in zip(unit_w, unit_b, strict=True)
    ]
    np.testing.assert_allclose(along, expected, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient_belong_together_under_the_penalty(loss):
    codes, _, labels, weights = problem()
    objective = one(codes, labels, weights, **LOSSES[loss])
    x, towards = anywhere(objective), anywhere(objective, 1)
    towards[..., 2, :] = 0  # the class without rows
    h = 0.02
    ahead, behind = (objective.weigh(y, objective(y)).value for y in (x + h * towards, x - h * towards))
    slope = float((objective.weigh(x, objective(x)).gradient * towards).sum())
    assert float(ahead - behind) / (2 * h) == pytest.approx(slope, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["logistic", "gce"])
def test_curvature_is_read_off_every_chunk_in_turns(kind, loss, monkeypatch):
    codes, array, labels, weights = problem(kind)
    objective = one(codes, labels, weights, kind=kind, **LOSSES[loss])
    textbook = Textbook(array, labels, weights, C, **LOSSES[loss])
    x = anywhere(objective)
    p = textbook.probabilities(*left(objective, x))
    curved = textbook.omega[:, None] * p * (1 - p)
    if loss == "gce":
        curved *= (p * textbook.hot).sum(1, keepdims=True) ** 0.7
    rows = objective.rows
    if kind == "few rows":
        coordinates = rows.coordinates_gnd[0].numpy()
    else:
        coordinates = (array - array.mean(0)) @ rows.axes_md.numpy()
    classes = textbook.present
    whole = objective(x)
    assert float(whole.seen) == pytest.approx(1)
    np.testing.assert_allclose(whole.spread[0, 0, classes], curved.sum(0), rtol=1e-4)
    np.testing.assert_allclose(whole.centre[0, 0, classes], curved.T @ coordinates, atol=1e-5)
    assert (whole.spread[0, 0, 2] < 1e-20).all()
    assert (whole.centre[0, 0, 2].abs() < 1e-20).all()
    if kind == "sparse":  # held in chunks of their own
        return
    for module in ("rows", "objective"):
        monkeypatch.setattr(f"monoeval.probes.{module}.CHUNK", 1)
    monkeypatch.setattr("monoeval.probes.rows.FEWEST_ROWS", 8)
    points = [objective(x) for _ in range(4)]
    assert all(0 < float(point.seen) < 1 for point in points)
    for part in ("seen", "spread", "centre"):
        total = sum(getattr(point, part) for point in points)
        np.testing.assert_allclose(total, getattr(whole, part), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(points[0].gradient, whole.gradient, atol=2e-6)


@pytest.mark.parametrize("loss", ["logistic", "label smoothing"])
def test_where_a_descent_starts_is_what_a_pass_gives_there(loss):
    codes, array, labels, weights = problem()
    objective = one(codes, labels, weights, row_losses=True, **LOSSES[loss])
    x, known = objective.origin()
    passed = objective(x)
    for mine, theirs in zip(known.parts(), passed.parts(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    # the best intercepts there are without weights
    textbook = Textbook(array, labels, weights, C, **LOSSES[loss])
    _, b = textbook.minimise(1e9)
    assert float(known.loss) == pytest.approx(textbook.loss(np.zeros((C, WIDTH)), b), rel=1e-6)


def dual(textbook, w, b, l2):
    """The dual value of the model's probabilities, made to fit the class frequencies; and a bound below it.

    Both as the definition has them: the entropies of the mixed rows, and the mixed entropies.
    """
    p, omega = textbook.probabilities(w, b), textbook.omega[:, None]
    wanted, mean = (omega * textbook.target).sum(0), (omega * p).sum(0)
    t = max(0.0, (1 - wanted / mean).max())
    q = (wanted - (1 - t) * mean) / t if t > 0 else wanted
    feasible = (1 - t) * p + t * q
    assert (feasible > -1e-12).all()
    np.testing.assert_allclose((omega * feasible).sum(0), wanted, atol=1e-12)
    pull = (omega * (feasible - textbook.target)).T @ textbook.codes
    penalty = (pull**2).sum() / (2 * l2)

    def entropy(p):
        return float(-(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)).sum(1) @ omega[:, 0])

    return entropy(feasible) - penalty, (1 - t) * entropy(p) + t * entropy(q[None] + 0 * p) - penalty


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("loss", ["logistic", "label smoothing"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_the_dual_value_worked_out_by_hand(kind, loss, missing):
    codes, array, labels, weights = problem(kind, missing=missing)
    objective = one(codes, labels, weights, kind=kind, **LOSSES[loss])
    textbook = Textbook(array, labels, weights, C, **LOSSES[loss])
    best = textbook.value(*textbook.minimise(0.1), 0.1)
    for seed, size in enumerate([0.0, 0.1, 0.5, 2.0]):
        x = anywhere(objective, seed, size)
        exact, below = dual(textbook, *left(objective, x), 0.1)
        bound = float(objective.weigh(x, objective(x)).bound)
        assert bound == pytest.approx(below, rel=1e-4, abs=1e-5)
        assert below <= exact + 1e-12
        assert exact <= best + 1e-9


@example(421, -2.73046875, 0.0, "sparse", True, 0.0)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(-3, 1),
    st.floats(-2, 1),
    st.sampled_from(KINDS),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 0.6]),
)
def test_no_parameters_give_a_bound_above_the_optimum(seed, log_l2, log_size, kind, missing, smoothing):
    codes, array, labels, weights = problem(kind, seed, missing)
    l2 = 10**log_l2
    objective = one(codes, labels, weights, l2, kind, smoothing=smoothing)
    textbook = Textbook(array, labels, weights, C, smoothing=smoothing)
    best = textbook.value(*textbook.minimise(l2), l2)
    x = anywhere(objective, seed, 10**log_size)
    assert float(objective.weigh(x, objective(x)).bound) <= best * (1 + 1e-5)
    # near the optimum too, where a wrong bound would end a descent early
    found = minimise(objective, tolerance=1e-5)
    assert float(found.value * (1 - found.gap)) <= best * (1 + 1e-5)
    assert float(found.gap) <= 1e-5
    assert float(found.value) == pytest.approx(best, rel=2e-5)
    near = found.x + 0.05 * x * objective.present[..., None]
    assert float(objective.weigh(near, objective(near)).bound) <= best * (1 + 1e-5)


def test_the_usual_bound_is_wrong_where_the_intercept_is_not_fitted_and_ours_is_not():
    # both classes have the same mean, so weights are no use; and the intercept is far off
    array = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]] * 2, dtype=np.float32)
    labels, l2 = np.repeat([0, 1], 4), torch.full((1, 1), 0.1, dtype=torch.float64)
    rows = Shared(TrainingCodes(torch.from_numpy(array)))
    objective = Objective(rows, torch.from_numpy(labels)[None, None], torch.ones(1, 1, 8), l2, 2, Loss(), False)
    x = torch.zeros(1, 1, 2, 3)
    x[..., 0, -1] = 3.0
    here = objective.weigh(x, objective(x))
    best = np.log(2)
    usual = float(here.value - here.gradient[..., :-1].square().sum() / (2 * 0.1))
    assert usual > 2 * best
    assert 0 < float(here.bound) <= best


@pytest.mark.parametrize("loss", ["gce", "mae", "sce"])
def test_losses_that_are_not_convex_have_no_bound(loss):
    codes, _, labels, weights = problem()
    objective = one(codes, labels, weights, **LOSSES[loss])
    x = anywhere(objective)
    assert float(objective.weigh(x, objective(x)).bound) == -torch.inf


def test_scaled_cross_entropy_claims_no_bound_that_was_derived_for_another_scale():
    codes, _, labels, weights = problem()
    objective = one(codes, labels, weights, alpha=3.0)
    x = anywhere(objective)
    assert float(objective.weigh(x, objective(x)).bound) == -torch.inf


def test_rounded_gradients_err_as_little_as_is_promised():
    rng = np.random.default_rng(5)
    codes = rng.standard_normal((4096, 64)).astype(np.float32) / 8  # rows of norm one on average
    labels = torch.from_numpy(rng.integers(0, C, 4096))[None, None]
    l2 = torch.full((1, 1), 1e-3, dtype=torch.float64)
    weights = torch.from_numpy(rng.exponential(size=(1, 1, 4096)).astype(np.float32))
    objective = Objective(Shared(TrainingCodes(torch.from_numpy(codes))), labels, weights, l2, C, Loss(), False)
    x = anywhere(objective, size=3.0)
    exact = objective(x)
    rounded = copy(objective)
    rounded.rows = copy(objective.rows)
    inside = rounded.rows._centred.bfloat16().float()
    chunk = DenseChunk(slice(0, 4096), objective.rows._centred[None])
    rounded.rows.chunks = lambda _: iter([RoundedChunk(chunk, inside)])
    error = (rounded(x).gradient - exact.gradient)[..., :-1].square().sum()
    gap = float(error) / (2 * l2) / exact.loss
    assert 0.02 * objective.rounding() < gap <= objective.rounding()


class RoundedChunk:
    """A chunk whose gradient is of factors rounded to bfloat16, as hardware does it."""

    def __init__(self, chunk, inside):
        self.rows, self.logits, self.inside = chunk.rows, chunk.logits, inside

    def add(self, gradient, residual_gkn):
        gradient.baddbmm_(residual_gkn.bfloat16().float(), self.inside[None])
