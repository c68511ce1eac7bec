"""Neighbours against scikit-learn's, with the same weights."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from monoeval.adapters.base import SparseRows
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Problem
from monoeval.probes.spec import KNN


def data(n=150, width=8, n_classes=3, apart=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    codes = rng.normal(size=(n_classes, width))[labels] * apart + rng.normal(size=(n, width)) + 3
    return codes.astype(np.float32), labels


def fit(codes, problems, n_classes=3, scale=1.0, **spec):
    held = codes if isinstance(codes, SparseRows) else torch.from_numpy(codes)
    return fit_probes(TrainingCodes(held, scale), problems, n_classes, KNN(**spec))


def theirs(codes, labels, test, k, n_classes=3, temperature=0.07):
    """Probabilities with one more neighbour drawn from the class shares."""
    mean = codes.mean(0, dtype=float)
    model = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / temperature))
    votes = np.zeros((len(test), n_classes))
    votes[:, np.unique(labels)] = model.fit(codes - mean, labels).predict_proba(test - mean)
    return (k * votes + np.bincount(labels, minlength=n_classes) / len(labels)) / (k + 1)


def sparse(n=150, width=60, k=4):
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % 3)
    indices = np.stack([rng.choice(40, k, replace=False) + y * 10 for y in labels])
    values = rng.exponential(size=(n, k)).astype(np.float32)
    values[::7, -1] = 0
    return SparseRows(torch.from_numpy(values), torch.from_numpy(indices), width), labels


@pytest.mark.parametrize("k", [1, 7, 150])
def test_probabilities_are_those_of_scikit_learn(k):
    codes, labels = data()
    test = data(seed=5)[0]
    logits = fit(codes, [Problem(np.arange(150), labels)], neighbours=(k,)).logits(torch.from_numpy(test), [0])
    assert np.allclose(torch.softmax(logits[:, 0], 1), theirs(codes, labels, test, k), atol=1e-4)


def test_the_energy_is_that_of_a_kernel_density():
    codes, labels = data()
    far = np.concatenate([codes[:1], 2 * codes.mean(0, keepdims=True) - codes[:1]])
    centred = codes - codes.mean(0)
    cosines = centred @ centred[0] / np.linalg.norm(centred, axis=1) / np.linalg.norm(centred[0])
    logits = fit(codes, [Problem(np.arange(150), labels)], neighbours=(150,)).logits(torch.from_numpy(far), [0])
    expected = [np.log(np.exp(sign * cosines / 0.07).mean()) for sign in (1, -1)]
    assert np.allclose(logits[:, 0].logsumexp(1), expected, atol=1e-3)


@pytest.mark.parametrize("grouped", [False, True])
def test_k_is_chosen_by_leaving_rows_out_with_their_groups(grouped):
    codes, labels = data(60, apart=0.7)
    groups = np.arange(60) // 2 if grouped else np.arange(60)
    if grouped:
        codes[1::2] = codes[::2] + 0.01  # near copies, which would make k = 1 look best
        labels[1::2] = labels[::2]
    ks = (1, 3, 9, 20)
    choice = fit(
        codes, [Problem(np.arange(60), labels, groups=groups if grouped else None)], neighbours=ks
    ).choices[0]
    losses = []
    for k in ks:
        loss = []
        for i in range(60):
            others = groups != groups[i]
            # centred by the mean of all rows, as the probe is
            mean = codes.mean(0, dtype=float)
            centred = (codes - mean) / np.linalg.norm(codes - mean, axis=1, keepdims=True)
            order = np.flatnonzero(others)[np.argsort(-(centred[others] @ centred[i]))[:k]]
            weights = np.exp(centred[order] @ centred[i] / 0.07)
            vote = weights[labels[order] == labels[i]].sum() / weights.sum()
            loss.append(-np.log((k * vote + (labels[others] == labels[i]).mean()) / (k + 1)))
        losses.append(np.mean(loss))
    assert choice.measures["neighbours"] == ks[int(np.argmin(losses))]
    assert choice.validation_loss == pytest.approx(min(losses), rel=1e-4)


def test_shots_are_tuned_on_their_validation_rows_and_vote_alone():
    codes, labels = data(200)
    rows = np.concatenate([np.flatnonzero(labels == c)[:4] for c in range(3)])
    held = np.setdiff1d(np.arange(200), rows)[:40]
    probes = fit(codes, [Problem(rows, labels[rows], held, labels[held])])
    ks = (5, 10, 12)  # the rest is cut to the twelve rows
    found = [theirs(codes[rows], labels[rows], codes[held], k) for k in ks]
    losses = [-np.log(p[np.arange(40), labels[held]]).mean() for p in found]
    best = int(np.argmin(losses))
    assert probes.choices[0].measures["neighbours"] == ks[best]
    assert probes.choices[0].validation_loss == pytest.approx(losses[best], rel=1e-4)
    ours = torch.softmax(probes.logits(torch.from_numpy(codes[held]), [0])[:, 0], 1)
    assert np.allclose(ours, found[best], atol=1e-4)


def test_many_rows_score_a_fifth(monkeypatch):
    codes, labels = data(200, apart=0.5)
    whole = fit(codes, [Problem(np.arange(200), labels)]).choices[0]
    monkeypatch.setattr("monoeval.probes.neighbours.MANY_ROWS", 100)
    part = fit(codes, [Problem(np.arange(200), labels)]).choices[0]
    assert part.validation_loss != whole.validation_loss
    assert part.validation_loss == pytest.approx(whole.validation_loss, abs=0.3)


def test_neither_chunks_nor_other_problems_nor_sparsity_nor_the_scale_matter(monkeypatch):
    codes, labels = sparse()
    noisy = np.where(np.arange(150) % 3 == 0, np.roll(labels, 1), labels)
    few = np.arange(0, 150, 4)
    problems = [
        Problem(np.arange(150), labels),
        Problem(np.arange(150), noisy),
        Problem(few, labels[few]),
    ]
    dense = codes.dense()
    together = fit(codes, problems, scale=3.0).logits(codes, [2, 0, 1])
    monkeypatch.setattr("monoeval.probes.held_out.CHUNK_ROWS", 7)
    monkeypatch.setattr("monoeval.probes.neighbours.QUERIES", 11)
    for i, problem in enumerate(problems):
        alone = fit(dense.numpy(), [problem]).logits(dense, [0])[:, 0]
        assert torch.allclose(together[:, (1, 2, 0)[i]], alone, atol=1e-3)


def test_a_missing_class_is_never_predicted_and_a_row_a_class_is_enough():
    codes, labels = data(60)
    some = np.flatnonzero(labels != 1)
    logits = fit(codes, [Problem(some, labels[some])]).logits(torch.from_numpy(codes), [0])[:, 0]
    assert (logits[:, 1] == -torch.inf).all()
    assert logits[:, [0, 2]].isfinite().all()
    rows = np.array([np.flatnonzero(labels == c)[0] for c in range(3)])
    lone = fit(codes, [Problem(rows, labels[rows])])
    assert np.isnan(lone.choices[0].validation_loss)
    ours = lone.logits(torch.from_numpy(codes[rows]), [0])[:, 0].argmax(1).numpy()
    assert (ours == labels[rows]).all()


def test_permuted_labels_give_chance():
    codes, labels = data(1200)
    wrong = np.random.default_rng(0).permutation(labels)
    probes = fit(codes[:600], [Problem(np.arange(600), wrong[:600])])
    correct = probes.logits(torch.from_numpy(codes[600:]), [0])[:, 0].argmax(1).numpy() == wrong[600:]
    assert abs(correct.mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / 600)
    assert probes.choices[0].measures["neighbours"] == 200
