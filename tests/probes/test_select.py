"""Selection of the L2: against scikit-learn's own cross-validation, and rules worked by hand."""

import warnings

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from monoeval.data.splits import folds
from monoeval.errors import MonoevalError, UsageError
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes as fit_all
from monoeval.probes.problem import Problem
from monoeval.probes.select import _Tuning
from monoeval.probes.spec import Logistic


class Probe:
    """One of the fitted probes, with what was chosen for it."""

    def __init__(self, probes, i):
        self.logits = lambda codes: probes.logits(codes, [i])[:, 0]
        self.intercept_c = probes.intercept_pc[i]
        self.choice = probes.choices[i]

    def __getattr__(self, name):
        return getattr(self.choice, name)


def fit_probes(codes, problems, n_classes, spec):
    probes = fit_all(TrainingCodes(codes), problems, n_classes, spec)
    return [Probe(probes, i) for i in range(len(problems))]


def predict(probe, codes):
    return probe.logits(codes)


DECADES = tuple(10.0**k for k in range(-6, 1))


def data(n=150, width=8, n_classes=3, apart=0.6, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    codes = rng.normal(size=(n_classes, width))[labels] * apart + rng.normal(size=(n, width))
    codes /= np.sqrt(((codes - codes.mean(0)) ** 2).sum(1).mean())
    return torch.from_numpy(codes.astype(np.float32)), labels


def sklearn_loss(codes, labels, train, held, l2):
    """Log-loss [held] of a fit on `train`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-9, max_iter=5000).fit(
            codes[train], labels[train]
        )
    return -model.predict_log_proba(codes[held])[np.arange(len(held)), labels[held]]


def cross_validated(codes, labels, grid):
    fold = folds(labels, 5, None, 0)
    losses = {}
    for l2 in grid:
        losses[l2] = np.empty(len(labels))
        for k in range(5):
            held = np.flatnonzero(fold == k)
            losses[l2][held] = sklearn_loss(codes.double().numpy(), labels, np.flatnonzero(fold != k), held, l2)
    return losses


def one_error(losses):
    best = min(losses, key=lambda l2: losses[l2].mean())
    choice = best
    for l2 in sorted(x for x in losses if x > best):
        gap = losses[l2] - losses[best]
        if gap.mean() > gap.std(ddof=1) / np.sqrt(len(gap)):
            break
        choice = l2
    return choice


@pytest.mark.parametrize("rule", ["min", "one-se"])
@pytest.mark.parametrize("seed", [0, 1])
def test_chooses_as_five_folds_of_scikit_learn_do(seed, rule):
    codes, labels = data(seed=seed)
    rng = np.random.default_rng(9)
    noisy = np.where(rng.random(len(labels)) < 0.5, rng.integers(0, 3, len(labels)), labels)
    rows = np.arange(len(labels))
    grid = [10.0**k for k in range(-6, 4)]
    spec = Logistic(l2=tuple(grid[:7]), rule=rule)
    probes = fit_probes(codes, [Problem(rows, labels), Problem(rows, noisy)], 3, spec)
    for probe, truth in zip(probes, (labels, noisy), strict=True):
        losses = cross_validated(codes, truth, grid)
        smallest = min(grid, key=lambda x: losses[x].mean())
        assert probe.l2 == pytest.approx(smallest if rule == "min" else one_error(losses))
        assert probe.validation_loss == pytest.approx(
            losses[min(grid, key=lambda x: abs(x - probe.l2))].mean(), rel=1e-3
        )
        assert probe.converged


def test_the_probe_is_fitted_again_on_all_rows():
    codes, labels = data()
    probe = fit_probes(codes, [Problem(np.arange(len(labels)), labels)], 3, Logistic())[0]
    theirs = sklearn_loss(codes.double().numpy(), labels, np.arange(len(labels)), np.arange(len(labels)), probe.l2)
    ours = torch.nn.functional.cross_entropy(predict(probe, codes), torch.from_numpy(labels))
    assert float(ours) == pytest.approx(theirs.mean(), rel=1e-3)


def test_shots_are_tuned_on_their_validation_rows_and_fitted_on_the_shots_alone():
    codes, labels = data(300)
    rng = np.random.default_rng(0)
    problems = []
    for n in (6, 12, 45):
        order = rng.permutation(len(labels))
        rows = np.concatenate([order[labels[order] == c][: n // 3] for c in range(3)])
        held = np.setdiff1d(order, rows)[:30]
        problems.append(Problem(rows, labels[rows], held, labels[held]))
    probes = fit_probes(codes, problems, 3, Logistic(l2=DECADES, rule="one-se"))
    for problem, probe in zip(problems, probes, strict=True):
        losses = {
            10.0**k: sklearn_loss(codes.double().numpy(), labels, problem.rows, problem.validation_rows, 10.0**k)
            for k in range(-9, 4)
        }
        nearest = min(losses, key=lambda x: abs(np.log(x / probe.l2)))
        assert nearest == one_error(losses)
        assert probe.validation_loss == pytest.approx(losses[nearest].mean(), rel=2e-3)


def test_a_probe_does_not_depend_on_the_others():
    codes, labels = data(200)
    few = Problem(np.arange(30), labels[:30])
    many = [
        Problem(np.arange(200), labels),
        Problem(np.arange(180), labels[:180]),
        Problem(np.arange(25), labels[:25]),
    ]
    together = fit_probes(codes, [*many, few], 3, Logistic())[3]
    alone = fit_probes(codes, [few], 3, Logistic())[0]
    assert together.l2 == alone.l2
    assert torch.allclose(predict(together, codes), predict(alone, codes), atol=0.02)


def test_many_rows_hold_out_a_fifth(monkeypatch):
    monkeypatch.setattr("monoeval.probes.batch.MANY_ROWS", 100)
    codes, labels = data(200)
    probe = fit_probes(codes, [Problem(np.arange(200), labels)], 3, Logistic())[0]
    fold = folds(labels, 5, None, 0)
    train, held = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    expected = sklearn_loss(codes.double().numpy(), labels, train, held, probe.l2).mean()
    assert probe.validation_loss == pytest.approx(expected, rel=1e-3)


def test_the_grid_is_extended_both_ways():
    codes, labels = data(apart=6.0)
    rng = np.random.default_rng(3)
    noise = rng.permutation(labels)
    rows = np.arange(len(labels))
    easy, hopeless = fit_probes(codes, [Problem(rows, labels), Problem(rows, noise)], 3, Logistic(l2=(1e-2, 1e-1)))
    assert easy.l2 < 1e-2
    assert hopeless.l2 > 1e-1
    assert hopeless.l2 <= 1e3


def test_a_choice_at_the_last_edge_is_reported(monkeypatch):
    monkeypatch.setattr("monoeval.probes.select.HIGHEST", 0.1)
    monkeypatch.setattr("monoeval.probes.select.LOWEST", 0.01)
    rows = np.arange(150)
    for apart in (6.0, 0.0):
        codes, labels = data(apart=apart)
        probe = fit_probes(codes, [Problem(rows, labels)], 3, Logistic(l2=(1e-2, 1e-1)))[0]
        assert probe.at_edge
        assert probe.l2 == (0.01 if apart else 0.1)


def test_one_value_is_taken_as_it_is():
    codes, labels = data()
    probe = fit_probes(codes, [Problem(np.arange(len(labels)), labels)], 3, Logistic(l2=(0.03,)))[0]
    assert probe.l2 == 0.03
    assert np.isnan(probe.validation_loss)
    assert not probe.at_edge


@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 20, 20), (2, 3, 1)])
def test_classes_with_a_single_row_can_be_cross_validated(counts):
    labels = np.repeat(np.arange(3), counts)
    codes = data(len(labels))[0]
    probe = fit_probes(codes, [Problem(np.arange(len(labels)), labels)], 4, Logistic())[0]
    assert probe.converged
    assert probe.intercept_c[:3].isfinite().all()
    assert (predict(probe, codes).argmax(1) < 3).all()


def test_groups_stay_in_one_fold_and_widen_the_error():
    codes, labels = data(120)
    groups = np.arange(120) // 10
    probe = fit_probes(codes, [Problem(np.arange(120), labels, groups=groups)], 3, Logistic())[0]
    assert probe.converged
    tuning = _Tuning("one-se")
    gap = np.repeat([0.3, -0.2, 0.25, -0.1, 0.2, -0.2], 50)
    tuning.add(1.0, 1 + gap, None)
    tuning.add(0.1, np.ones(300), None)
    assert tuning.chosen == 0.1  # 300 rows: 0.042 is more than an error of 0.012
    tuning.clusters = np.arange(300) // 50
    assert tuning.chosen == 1.0  # six clusters: the error is 0.09


def test_nothing_to_tell_values_apart_takes_the_largest():
    tuning = _Tuning("one-se")
    for l2 in (1.0, 0.1, 0.01):
        tuning.add(l2, np.full(5, 0.7), None)
    assert tuning.best == tuning.chosen == 1.0


def test_errors_say_what_was_wrong():
    codes, labels = data(30)
    rows = np.arange(30)

    def attempt(problem, codes=codes, spec=Logistic()):  # noqa: B008
        fit_probes(codes, [problem], 3, spec)

    broken = codes.clone()
    broken[[3, 7], 2] = torch.nan
    with pytest.raises(MonoevalError, match="2 of 30 rows"):
        attempt(Problem(rows, labels), broken)
    with pytest.raises(UsageError, match="class 0"):
        attempt(Problem(rows, np.zeros(30, int)))
    with pytest.raises(UsageError, match="0 to 3, outside 0 to 2"):
        attempt(Problem(rows, np.where(labels == 2, 3, labels)))
    with pytest.raises(UsageError, match="without a single"):
        attempt(Problem(rows[:0], labels[:0]))
    with pytest.raises(UsageError, match="outside the 30 rows"):
        attempt(Problem(rows + 5, labels))
    with pytest.raises(UsageError, match="labels"):
        attempt(Problem(rows, labels, rows[:3]))
    for wrong in ({"l2": (0.0, 1.0)}, {"l2": ()}, {"folds": 1}):
        with pytest.raises(ValidationError):
            Logistic(**wrong)


def test_codes_too_large_for_the_memory_are_one_sentence(monkeypatch):
    def full(*_: object, **__: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr("monoeval.probes.fit.fit_selected", full)
    rows = np.arange(4)
    with pytest.raises(MonoevalError, match="not enough memory for probes of 2 classes on 4 rows of 3 codes"):
        fit_probes(torch.randn(4, 3), [Problem(rows, rows % 2)], 2, Logistic())
