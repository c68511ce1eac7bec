"""How codes enter a solve: sparse, streamed, padded or few, they are the same rows."""

import numpy as np
import pytest
import torch
from textbook import Textbook, clusters, topk_codes

from monoeval.adapters.base import SparseRows
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.logistic import minimise
from monoeval.probes.objective import Loss, Objective
from monoeval.probes.rows import RowSpace, Shared, SparseChunk

C = 3


def objective(rows, labels_gpn, weights_gpn, l2=0.01):
    l2_gp = torch.full(labels_gpn.shape[:2], l2, dtype=torch.float64)
    return Objective(rows, labels_gpn, weights_gpn, l2_gp, C, Loss(), True)


def test_a_sparse_chunk_multiplies_as_its_dense_rows_do_unused_places_included():
    values, indices, _ = topk_codes(50, 12, 4, C)
    sparse = SparseRows(torch.from_numpy(values), torch.from_numpy(indices), 12)
    assert (sparse.values == 0).any()
    chunk = SparseChunk.of(slice(0, 50), sparse)
    generator = torch.Generator().manual_seed(0)
    weights, offset = torch.randn(12, 6, generator=generator), torch.randn(1, 6, generator=generator)
    logits = chunk.logits(weights, offset, torch.empty(50 * 6 + 5))
    torch.testing.assert_close(logits, (sparse.dense() @ weights + offset).T[None])
    residual, gradient = torch.randn(1, 6, 50, generator=generator), torch.ones(12, 6)
    chunk.add(gradient, residual)
    torch.testing.assert_close(gradient, 1 + sparse.dense().T @ residual[0].T)


@pytest.mark.parametrize("rotated", [True, False])
def test_sparse_rows_give_the_pass_of_dense_ones(rotated, monkeypatch):
    if not rotated:
        monkeypatch.setattr("monoeval.probes.rows.WIDEST_ROTATION", 4)
        monkeypatch.setattr("monoeval.probes.rows.LEADING", 3)
    monkeypatch.setattr("monoeval.probes.rows.SPARSE_ROWS", 30)
    values, indices, labels = topk_codes(80, 12, 4, C)
    sparse = SparseRows(torch.from_numpy(values), torch.from_numpy(indices), 12)
    points = []
    for held in (sparse, sparse.dense()):
        whole = objective(Shared(TrainingCodes(held)), torch.from_numpy(labels)[None, None], torch.ones(1, 1, 80))
        found = minimise(whole, tolerance=1e-6)
        points.append((float(found.value), *whole.rows.leave(found.x)))
    assert points[0][0] == pytest.approx(points[1][0], rel=1e-6)
    torch.testing.assert_close(points[0][1], points[1][1], atol=2e-3, rtol=0)
    torch.testing.assert_close(points[0][2], points[1][2], atol=2e-3, rtol=0)


def few(sparse):
    """Three groups of 20, 14 and 9 rows, of which all but the last 5 are fitted, on 30 shared columns."""
    if sparse:
        values, indices, labels = topk_codes(90, 30, 5, C)
        held = SparseRows(torch.from_numpy(values), torch.from_numpy(indices), 30)
        array = held.dense()
    else:
        array, labels = clusters(90, 30, C, 0.5)
        array = held = torch.from_numpy(array)
    rng = np.random.default_rng(0)
    groups = [torch.from_numpy(np.concatenate([[0, 1, 2], 3 + rng.permutation(87)[: n - 3]])) for n in (20, 14, 9)]
    return TrainingCodes(held), array, labels, groups, [len(rows) - 5 for rows in groups]


def grouped(labels, groups, fitted):
    """Labels and weights [G, 2, n], padded; the second problem of each group has other labels."""
    n = max(map(len, groups))
    labels_gpn, weights_gpn = torch.zeros(len(groups), 2, n, dtype=torch.int64), torch.zeros(len(groups), 2, n)
    for g, (rows, n_fitted) in enumerate(zip(groups, fitted, strict=True)):
        own = torch.from_numpy(labels[rows.numpy()])
        labels_gpn[g, :, : len(rows)] = torch.stack([own, own.roll(1)])
        weights_gpn[g, :, :n_fitted] = 1
    return labels_gpn, weights_gpn


@pytest.mark.parametrize("sparse", [False, True])
def test_padded_groups_equal_single_ones_and_the_textbook(sparse):
    codes, array, labels, groups, fitted = few(sparse)
    labels_gpn, weights_gpn = grouped(labels, groups, fitted)
    rows = RowSpace.of(codes, groups, fitted)
    found = minimise(objective(rows, labels_gpn, weights_gpn), tolerance=1e-6)
    weights, intercept = rows.leave(found.x)
    assert found.converged.all()
    for g, (group, n_fitted) in enumerate(zip(groups, fitted, strict=True)):
        single_rows = RowSpace.of(codes, [group], [n_fitted])
        n = slice(len(group))
        alone = minimise(
            objective(single_rows, labels_gpn[g : g + 1, :, n], weights_gpn[g : g + 1, :, n]), tolerance=1e-6
        )
        alone_weights, alone_intercept = single_rows.leave(alone.x)
        torch.testing.assert_close(found.value[g], alone.value[0], rtol=2e-6, atol=0)
        torch.testing.assert_close(weights[g], alone_weights[0], atol=5e-3, rtol=0)
        torch.testing.assert_close(intercept[g], alone_intercept[0], atol=5e-3, rtol=0)
        for p in range(2):
            textbook = Textbook(array[group], labels_gpn[g, p, n].numpy(), weights_gpn[g, p, n].numpy(), C)
            w, b = textbook.minimise(0.01)
            assert float(found.value[g, p]) == pytest.approx(textbook.value(w, b, 0.01), rel=2e-6)
            np.testing.assert_allclose(weights[g, p], w, atol=1e-2)
            # rows that are only scored get the loss that the weights give them on the codes themselves
            mine = weights[g, p].double().numpy(), intercept[g, p].double().numpy()
            np.testing.assert_allclose(found.at.losses[g, p, n], textbook.losses(*mine), rtol=1e-3, atol=1e-4)


def test_groups_that_are_left_over_keep_their_own_rows():
    codes, _, labels, groups, fitted = few(sparse=False)
    labels_gpn, weights_gpn = grouped(labels, groups, fitted)
    kept = torch.tensor([2, 0])
    some = objective(RowSpace.of(codes, groups, fitted), labels_gpn, weights_gpn)
    some.take(0, kept)
    alone = objective(
        RowSpace.of(codes, [groups[2], groups[0]], [fitted[2], fitted[0]]), labels_gpn[kept], weights_gpn[kept]
    )
    x, _ = alone.origin()
    x[..., 0, 0] += 0.5
    wide = x.new_zeros(*x.shape[:3], some.rows.variances_gd.shape[1] + 1)
    wide[..., : x.shape[3] - 1], wide[..., -1] = x[..., :-1], x[..., -1]
    torch.testing.assert_close(some(wide).loss, alone(x).loss)


def test_equal_rows_span_nothing_and_leave_the_intercept():
    codes = TrainingCodes(torch.ones(6, 10))
    labels = torch.tensor([[[0, 0, 0, 1, 1, 2]]])
    rows = RowSpace.of(codes, [torch.arange(6)], [6])
    found = minimise(objective(rows, labels, torch.ones(1, 1, 6)))
    weights, intercept = rows.leave(found.x)
    assert (weights.abs() < 1e-3).all()
    p = torch.softmax(codes.held[:1] @ weights[0, 0].T + intercept[0, 0], 1)
    torch.testing.assert_close(p[0], torch.tensor([3.0, 2.0, 1.0]) / 6)
