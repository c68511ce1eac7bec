"""The nearest class mean against scikit-learn and the density of spherical classes."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.neighbors import NearestCentroid

from monoeval.adapters.base import SparseRows
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.held_out import shared_rows
from monoeval.probes.problem import Problem
from monoeval.probes.spec import NearestMean


def data(n=150, width=8, n_classes=3, apart=1.0, seed=0, shift=3.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    codes = rng.normal(size=(n_classes, width))[labels] * apart + rng.normal(size=(n, width)) + shift
    return codes.astype(np.float32), labels


def fit(codes, problems, n_classes=3, scale=1.0):
    held = codes if isinstance(codes, SparseRows) else torch.from_numpy(codes)
    return fit_probes(TrainingCodes(held, scale), problems, n_classes, NearestMean())


def densities(codes, labels, test, temperature):
    """Log-probabilities of equally frequent spherical classes."""
    means = np.stack([codes[labels == c].mean(0) for c in np.unique(labels)]).astype(float)
    return log_softmax(-((test[:, None] - means) ** 2).sum(2) / (2 * temperature), 1)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_predicts_as_scikit_learn_with_the_probabilities_of_spherical_classes(shift):
    codes, labels = data(shift=shift)
    probes = fit(codes, [Problem(np.arange(len(labels)), labels)])
    logits = probes.logits(torch.from_numpy(codes), [0])[:, 0].double()
    theirs = NearestCentroid().fit(codes.astype(float), labels).predict(codes.astype(float))
    assert (logits.argmax(1).numpy() == theirs).mean() > (0.99 if shift else 0.999)
    expected = densities(codes, labels, codes, probes.choices[0].measures["temperature"])
    # float32 logits of codes far from zero keep fewer digits
    assert np.allclose(log_softmax(logits.numpy(), 1), expected, atol=1e-3 if shift == 0 else 0.1)


def test_the_temperature_is_the_one_that_is_best_on_left_out_rows():
    codes, labels = data(apart=0.8)
    problem = Problem(np.arange(len(labels)), labels)
    choice = fit(codes, [problem]).choices[0]
    fold, _ = shared_rows([problem], torch.device("cpu"))[0].folds(5)

    def loss(temperature):
        total = 0.0
        for f in range(5):
            here = fold == f
            found = densities(codes[~here], labels[~here], codes[here], temperature)
            total -= found[np.arange(here.sum()), labels[here]].sum()
        return total / len(labels)

    best = choice.measures["temperature"]
    assert choice.validation_loss == pytest.approx(loss(best), rel=1e-4)
    # as if one more row were of any class: the minimum itself lies a little lower
    assert min(loss(best * 0.8), loss(best * 1.25)) > loss(best)
    assert loss(best) < min(loss(best * t) for t in np.geomspace(0.1, 10, 50)) + 1e-3


def test_means_of_the_shots_with_the_temperature_of_their_validation_rows():
    codes, labels = data(200)
    rows = np.concatenate([np.flatnonzero(labels == c)[:2] for c in range(3)])
    held = np.setdiff1d(np.arange(200), rows)[:40]
    probes = fit(codes, [Problem(rows, labels[rows], held, labels[held])])
    choice = probes.choices[0]
    expected = densities(codes[rows], labels[rows], codes[held], choice.measures["temperature"])
    assert choice.validation_loss == pytest.approx(-expected[np.arange(40), labels[held]].mean(), rel=1e-4)
    ours = log_softmax(probes.logits(torch.from_numpy(codes[held]), [0])[:, 0].numpy(), 1)
    assert np.allclose(ours, expected, atol=1e-3)


def test_neither_chunks_nor_other_problems_nor_sparsity_nor_the_scale_matter(monkeypatch):
    codes, labels = data(160, 30)
    at = np.argsort(-codes, 1)[:, :4]
    sparse = SparseRows(torch.from_numpy(np.take_along_axis(codes, at, 1)), torch.from_numpy(at), 30)
    noisy = np.where(np.arange(160) % 3 == 0, np.roll(labels, 1), labels)
    few = np.arange(0, 160, 4)
    problems = [
        Problem(np.arange(160), labels),
        Problem(np.arange(160), noisy),
        Problem(few, labels[few]),
    ]
    dense = sparse.dense()
    together = fit(sparse, problems, scale=3.0).logits(sparse, [0, 1, 2])
    monkeypatch.setattr("monoeval.probes.held_out.CHUNK_ROWS", 7)
    monkeypatch.setattr("monoeval.probes.held_out.SCORES", 1)
    for i, problem in enumerate(problems):
        alone = fit(dense.numpy(), [problem]).logits(dense, [0])[:, 0]
        assert torch.allclose(together[:, i], alone, atol=1e-3)


def test_a_missing_class_is_never_predicted_and_a_row_a_class_is_enough():
    codes, labels = data(60)
    some = np.flatnonzero(labels != 1)
    logits = fit(codes, [Problem(some, labels[some])]).logits(torch.from_numpy(codes), [0])[:, 0]
    assert (logits[:, 1] == -torch.inf).all()
    assert logits[:, [0, 2]].isfinite().all()
    rows = np.array([np.flatnonzero(labels == c)[0] for c in range(3)])
    lone = fit(codes, [Problem(rows, labels[rows])])
    assert lone.choices[0].measures["temperature"] == 1
    ours = lone.logits(torch.from_numpy(codes), [0])[:, 0].argmax(1).numpy()
    assert (ours == ((codes[:, None] - codes[rows]) ** 2).sum(2).argmin(1)).all()


def test_permuted_labels_give_chance():
    codes, labels = data(1200)
    wrong = np.random.default_rng(0).permutation(labels)
    probes = fit(codes[:600], [Problem(np.arange(600), wrong[:600])])
    correct = probes.logits(torch.from_numpy(codes[600:]), [0])[:, 0].argmax(1).numpy() == wrong[600:]
    assert abs(correct.mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / 600)
    assert probes.choices[0].validation_loss == pytest.approx(np.log(3), abs=0.02)
