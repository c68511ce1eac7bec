"""The batched solver against scikit-learn's tightly converged optimum, in float64."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from textbook import clusters, topk_codes

from monoeval.adapters.base import Codes, SparseRows
from monoeval.backbones.features import FeatureSet
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.logistic import minimise, solve_grid
from monoeval.probes.objective import Loss, Objective
from monoeval.probes.problem import Problem
from monoeval.probes.rows import Shared
from monoeval.probes.spec import Logistic

GRID = [10.0**k for k in range(-6, 2)]


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


def optimum(codes, labels, weights, l2, n_classes, **more):
    used = weights > 0
    mean = codes.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(**{"C": 1 / (l2 * weights.sum()), "tol": 1e-10, "max_iter": 10000, **more})
        model.fit((codes - mean)[used], labels[used], sample_weight=weights[used])
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn has one logit then, and the penalty of half its square
        coefficients, intercepts = np.r_[-coefficients, coefficients] / 2, np.r_[-intercepts, intercepts] / 2
    w, b = np.zeros((n_classes, codes.shape[1])), np.full(n_classes, -np.inf)
    w[model.classes_], b[model.classes_] = coefficients, intercepts - coefficients @ mean
    return w, b


def fit(codes, labels, weights, grid=GRID, n_classes=4, **more):
    """Of codes as an array, sparse rows or a stream."""
    return solve_grid(
        TrainingCodes(torch.from_numpy(codes) if isinstance(codes, np.ndarray) else codes),
        torch.from_numpy(labels)[None],
        grid,
        n_classes,
        row_weights_pn=torch.from_numpy(weights)[None],
        **more,
    )


def ours(solution, codes, labels, weights, l2, position):
    """The objective of our weights, in float64."""
    w, b = (part[0, position].double().numpy() for part in (solution.weights_plcm, solution.intercept_plc))
    return objective(codes.astype(float), labels, weights.astype(float), l2, w, b)


def best(codes, labels, weights, l2, n_classes=4, **more):
    """The objective of scikit-learn's weights."""
    codes, weights = codes.astype(float), weights.astype(float)
    return objective(codes, labels, weights, l2, *optimum(codes, labels, weights, l2, n_classes, **more))


@pytest.mark.parametrize("name", CASES)
def test_reaches_the_optimum_on_every_l2(name):
    codes, labels, weights = case(name)
    solution = fit(codes, labels, weights)
    assert solution.converged_pl.all()
    for position, l2 in enumerate(GRID):
        w, b = optimum(codes.astype(float), labels, weights.astype(float), l2, 4)
        smallest = objective(codes.astype(float), labels, weights.astype(float), l2, w, b)
        reached, gap = float(solution.objective_pl[0, position]), float(solution.gap_pl[0, position])
        assert ours(solution, codes, labels, weights, l2, position) - smallest <= 2e-5 * smallest
        assert reached == pytest.approx(smallest, rel=3e-5)
        assert reached * (1 - gap) <= smallest * (1 + 1e-6)  # what is proven is true
        theirs = codes @ w.T + b
        top = np.sort(theirs, 1)
        clear = top[:, -1] - top[:, -2] > 0.02 * (1 + np.abs(top[:, -1]))
        logits = codes @ solution.weights_plcm[0, position].numpy().T + solution.intercept_plc[0, position].numpy()
        assert (logits.argmax(1) == theirs.argmax(1))[clear].all()


@pytest.mark.parametrize("k", [3, 8])
def test_sparse_codes_reach_the_optimum_of_dense_ones(k):
    values, indices, labels = topk_codes(200, 24, k, 4)
    sparse = SparseRows(torch.from_numpy(values), torch.from_numpy(indices), 24)
    weights, array = np.ones(200, np.float32), sparse.dense().numpy()
    grid = [1e-4, 1e-2, 1.0]
    solution, dense = fit(sparse, labels, weights, grid), fit(array, labels, weights, grid)
    assert solution.converged_pl.all()
    for position, l2 in enumerate(grid):
        smallest = best(array, labels, weights, l2)
        assert ours(solution, array, labels, weights, l2, position) == pytest.approx(smallest, rel=2e-5)
    torch.testing.assert_close(solution.objective_pl, dense.objective_pl, rtol=2e-5, atol=0)


def streamed(folder, array, encode):
    """Codes of an array on disk, in two shards."""
    paths = [folder / "0.npy", folder / "1.npy"]
    for path, part in zip(paths, np.array_split(array, 2), strict=True):
        np.save(path, part)
    adapter = SimpleNamespace(method="made", width=array.shape[1], encode=encode, origin=None)
    return Codes(FeatureSet("made", tuple(paths)), adapter, torch.device("cpu"))


def top_four(codes):
    values, indices = codes.topk(4)
    return SparseRows(values, indices, codes.shape[1])


@pytest.mark.parametrize("encode", [lambda codes: codes, top_four], ids=["dense", "sparse"])
@pytest.mark.parametrize("width", [16, 60])
def test_streamed_codes_give_what_held_ones_do(encode, width, tmp_path, monkeypatch):
    array, labels = clusters(50 if width == 60 else 240, width, 4, 0.5)
    weights, grid = np.ones(len(labels), np.float32), [1e-3, 1e-1]
    held = fit(encode(torch.from_numpy(array)), labels, weights, grid)
    monkeypatch.setattr("monoeval.probes.rows.KEPT", 0)
    monkeypatch.setattr("monoeval.probes.rows.FEWEST_ROWS", 64)
    monkeypatch.setattr("monoeval.probes.rows.CHUNK", 1)
    monkeypatch.setattr("monoeval.probes.rows.SPARSE_ROWS", 64)
    stream = fit(streamed(tmp_path, array, encode), labels, weights, grid)
    assert stream.converged_pl.all()
    torch.testing.assert_close(stream.objective_pl, held.objective_pl, rtol=2e-5, atol=0)
    assert (stream.weights_plcm - held.weights_plcm).norm() <= 0.02 * held.weights_plcm.norm()


def test_the_scale_of_codes_is_divided_out():
    codes, labels, weights = case("clusters")
    scaled = solve_grid(
        TrainingCodes(torch.from_numpy(codes), scale=2.5), torch.from_numpy(labels)[None], [1e-2], 4
    )
    plain = fit(codes / np.float32(2.5), labels, weights, [1e-2])
    torch.testing.assert_close(scaled.weights_plcm, plain.weights_plcm, atol=1e-5, rtol=0)


@pytest.mark.parametrize("l2", [1e-3, 1.0])
def test_balanced_classes_are_weighted_as_scikit_learn_does(l2):
    codes, labels = clusters(300, 8, 3, 0.5)
    kept = (labels == 0) | (np.random.default_rng(0).random(300) < 0.2)
    codes, labels = codes[kept], labels[kept]
    problem = Problem(np.arange(len(labels)), labels)
    probes = fit_probes(TrainingCodes(torch.from_numpy(codes)), [problem], 3, Logistic(l2=(l2,), balanced=True))
    w, b = optimum(codes.astype(float), labels, np.ones(len(labels)), l2, 3, class_weight="balanced")
    logits = probes.logits(torch.from_numpy(codes), [0])[:, 0]
    expected = torch.from_numpy(codes @ w.T + b)
    torch.testing.assert_close(logits.softmax(1).double(), expected.softmax(1), atol=2e-3, rtol=0)
    even, _ = optimum(codes.astype(float), labels, np.ones(len(labels)), l2, 3)
    assert np.abs(even - w).max() > 0.01  # and that is not what equal weights give


@pytest.mark.parametrize("l2", [1e-9, 1e-4, 1.0])
@pytest.mark.parametrize("apart", [0.5, 6.0])
def test_two_classes(apart, l2):
    codes, labels = clusters(120, 6, 2, apart)
    weights = np.ones(120, np.float32)
    solution = fit(codes, labels, weights, [l2], 2)
    # scikit-learn's single weight is the difference of ours, whose squares sum to half of its own
    smallest = best(codes, labels, weights, l2, 2, C=2 / (l2 * 120))
    assert ours(solution, codes, labels, weights, l2, 0) == pytest.approx(smallest, rel=1e-4)
    assert solution.converged_pl.all()


def test_a_thousand_classes():
    codes, labels = clusters(1500, 16, 1000, 2.0)
    weights = np.ones(1500, np.float32)
    solution = fit(codes, labels, weights, [1e-2], 1000)
    smallest = best(codes, labels, weights, 1e-2, 1000, tol=1e-6)
    assert ours(solution, codes, labels, weights, 1e-2, 0) <= smallest * (1 + 2e-5)
    assert float(solution.objective_pl * (1 - solution.gap_pl)) <= smallest
    assert float(solution.gap_pl) <= 1e-4


@pytest.mark.parametrize("name", ["separable", "fewer rows than columns", "heavy-tailed"])
def test_the_proven_gap_holds_at_the_smallest_l2(name):
    codes, labels, weights = case(name)
    solution = fit(codes, labels, weights, [1e-9, 1e-8])
    assert solution.converged_pl.all()
    for position, l2 in enumerate([1e-9, 1e-8]):
        smallest = min(best(codes, labels, weights, l2), ours(solution, codes, labels, weights, l2, position))
        proven = float(solution.objective_pl[0, position] * (1 - solution.gap_pl[0, position]))
        assert proven <= smallest * (1 + 1e-5)


def test_too_few_passes_are_owned_up_to():
    codes, labels, weights = case("noisy")
    l2 = torch.full((1, 1), 1e-4, dtype=torch.float64)
    rows = Shared(TrainingCodes(torch.from_numpy(codes)))
    labels_gpn, weights_gpn = torch.from_numpy(labels)[None, None], torch.from_numpy(weights)[None, None]
    whole = Objective(rows, labels_gpn, weights_gpn, l2, 4, Loss(), False)
    short, long = minimise(whole, max_passes=1), minimise(whole)
    assert not short.converged.any()
    assert long.converged.all()
    assert short.passes.item() == 1
    assert short.value.item() > long.value.item()
    assert short.value.item() * (1 - short.gap.item()) <= long.value.item()


def test_the_order_of_rows_does_not_matter():
    codes, labels, weights = case("weighted")
    order = np.random.default_rng(0).permutation(len(labels))
    plain = fit(codes, labels, weights, tolerance=1e-6)
    other = fit(codes[order], labels[order], weights[order], tolerance=1e-6)
    torch.testing.assert_close(plain.objective_pl, other.objective_pl, rtol=2e-6, atol=0)
    difference = (plain.weights_plcm - other.weights_plcm).flatten(2).norm(dim=2)
    assert (difference <= 0.01 * plain.weights_plcm.flatten(2).norm(dim=2)).all()


def test_permuted_labels_give_chance_on_rows_held_out():
    codes, labels = clusters(3000, 16, 5, 2.0)
    wrong = np.random.default_rng(0).permutation(labels)
    solution = fit(codes[:1000], wrong[:1000], np.ones(1000, np.float32), [1e-6, 1e-3, 1e-1], 5)
    logits = torch.from_numpy(codes[1000:]) @ solution.weights_plcm[0].mT + solution.intercept_plc[0, :, None]
    accuracy = (logits.argmax(2).numpy() == wrong[1000:]).mean(1)
    assert (np.abs(accuracy - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 2000)).all()
    right = fit(codes[:1000], labels[:1000], np.ones(1000, np.float32), [1e-3], 5)
    logits = torch.from_numpy(codes[1000:]) @ right.weights_plcm[0, 0].T + right.intercept_plc[0, 0]
    assert (logits.argmax(1).numpy() == labels[1000:]).mean() > 0.9


def test_a_missing_class_is_never_predicted():
    codes, labels, weights = case("missing class")
    solution = fit(codes, labels, weights)
    assert (solution.intercept_plc[:, :, 2] == -torch.inf).all()
    assert (solution.weights_plcm[:, :, 2] == 0).all()
    assert solution.intercept_plc[:, :, [0, 1, 3]].isfinite().all()


def test_neighbours_in_the_batch_change_nothing_that_matters_and_reruns_nothing_at_all():
    codes, labels, weights = case("noisy")
    labels_pn = torch.from_numpy(np.stack([labels, np.roll(labels, 1), labels[::-1]]))
    runs = [solve_grid(TrainingCodes(torch.from_numpy(codes)), labels_pn, GRID, 4) for _ in range(2)]
    alone = fit(codes, labels, weights, GRID[2:3])
    assert torch.equal(runs[0].weights_plcm, runs[1].weights_plcm)
    assert torch.equal(runs[0].intercept_plc, runs[1].intercept_plc)
    assert torch.allclose(runs[0].objective_pl[0, 2], alone.objective_pl[0, 0], rtol=1e-5)


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
    monkeypatch.setattr("monoeval.probes.rows.LEADING", 3)
    codes, labels, weights = case("clusters")
    plain = fit(codes, labels, weights, [1e-3])
    assert float(plain.objective_pl) == pytest.approx(best(codes, labels, weights, 1e-3), rel=2e-5)


def test_a_failed_eigendecomposition_costs_speed_and_nothing_else(monkeypatch):
    # what LAPACK's float32 routine did, without a word, on codes with many dead latents
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (a[..., 0] * torch.nan, a * torch.nan))
    codes, labels, weights = case("clusters")
    plain = fit(codes, labels, weights, [1e-3])
    assert float(plain.objective_pl) == pytest.approx(best(codes, labels, weights, 1e-3), rel=2e-5)
