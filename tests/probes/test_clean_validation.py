"""Tuning on clean labels of rows that a fold left out, while noisy labels are fitted."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from monoeval.data.splits import folds
from monoeval.errors import UsageError
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Problem
from monoeval.probes.spec import KNN, Logistic, NearestMean, Ridge
from monoeval.spec import Spec

DECADES = tuple(10.0**k for k in range(-5, 1))
SPECS: list[Spec] = [Logistic(l2=DECADES), Ridge(l2=DECADES), NearestMean(), KNN(neighbours=(1, 3, 10, 30, 60))]


def made(n: int = 200, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Codes [n, 6], clean labels, and labels of which half are another class."""
    rng = np.random.default_rng(seed)
    clean = rng.permutation(np.arange(n) % 3)
    codes = rng.normal(size=(3, 6))[clean] * 2 + rng.normal(size=(n, 6))
    codes /= np.sqrt(((codes - codes.mean(0)) ** 2).sum(1).mean())
    noisy = np.where(rng.random(n) < 0.5, (clean + rng.integers(1, 3, n)) % 3, clean)
    return torch.from_numpy(codes.astype(np.float32)), clean, noisy


def fit(spec: Spec, codes: torch.Tensor, *problems: Problem) -> Any:
    return fit_probes(TrainingCodes(codes), problems, 3, spec)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_the_same_labels_given_twice_change_nothing(spec: Spec) -> None:
    codes, _, noisy = made()
    rows = np.arange(200)
    usual, named = (fit(spec, codes, Problem(rows, noisy, selection_labels=s)) for s in (None, noisy))
    assert usual.choices == named.choices
    assert torch.equal(usual.logits(codes, [0]), named.logits(codes, [0]))


@pytest.mark.parametrize("spec", SPECS[:3], ids=lambda spec: spec.kind)  # neighbours: below, by hand
def test_clean_labels_change_the_choice_to_one_that_is_better_on_them(spec: Spec) -> None:
    codes, clean, noisy = made()
    rows = np.arange(200)
    both = fit(spec, codes, Problem(rows, noisy), Problem(rows, noisy, selection_labels=clean))
    usual, oracle = both.choices
    assert (usual.l2, usual.measures) != (oracle.l2, oracle.measures)
    assert oracle.validation_loss < usual.validation_loss
    losses = [
        -log_softmax(both.logits(codes, [i])[:, 0].double().numpy(), axis=1)[rows, clean].mean() for i in (0, 1)
    ]
    assert losses[1] < losses[0]  # on the clean labels of the rows themselves: half of what is fitted is wrong


@pytest.mark.parametrize(
    ("spec", "fold_of"),
    [
        (Logistic(l2=DECADES), lambda noisy: folds(noisy, 5)),
        (Ridge(l2=DECADES), lambda noisy: folds(np.zeros_like(noisy), 5)),
        (NearestMean(), lambda noisy: folds(np.zeros_like(noisy), 5)),
    ],
    ids=["logistic", "ridge", "ncm"],
)
def test_one_held_out_fifth_is_tuned_on_as_given_validation_rows_are(
    spec: Spec, fold_of: Callable[[np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("batch", "held_out"):
        monkeypatch.setattr(f"monoeval.probes.{room}.MANY_ROWS", 100)
    codes, clean, noisy = made(seed=3)
    fold = fold_of(noisy)
    train, held = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    ours = fit(spec, codes, Problem(np.arange(200), noisy, selection_labels=clean)).choices[0]
    same = fit(spec, codes, Problem(train, noisy[train], held, clean[held])).choices[0]
    assert ours.l2 == same.l2
    assert ours.validation_loss == pytest.approx(same.validation_loss, rel=2e-3)
    assert ours.measures.get("temperature", 1) == pytest.approx(same.measures.get("temperature", 1), rel=1e-2)


def test_neighbours_vote_with_noisy_labels_and_are_judged_by_clean_ones() -> None:
    codes, clean, noisy = made()
    grid = (1, 3, 10, 30, 60)
    groups = np.arange(200) // 2
    problem = Problem(np.arange(200), noisy, groups=groups, selection_labels=clean)
    chosen = fit(KNN(neighbours=grid), codes, problem).choices[0]
    x = codes.double().numpy()
    x = (x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=1, keepdims=True)
    losses = []
    for k in grid:
        loss = []
        for row in range(200):
            others = np.flatnonzero(groups != groups[row])
            cosine = x[others] @ x[row]
            best = np.argsort(-cosine)[:k]
            vote = np.exp(cosine[best] / 0.07)
            votes = (vote * (noisy[others[best]] == clean[row])).sum() / vote.sum()
            loss.append(-np.log((k * votes + (noisy[others] == clean[row]).mean()) / (k + 1)))
        losses.append(np.mean(loss))
    assert chosen.measures["neighbours"] == grid[int(np.argmin(losses))]
    assert chosen.validation_loss == pytest.approx(min(losses), rel=1e-4)


def test_labels_to_select_by_are_checked() -> None:
    codes, clean, noisy = made()
    with pytest.raises(UsageError, match="200 training rows but 3 labels"):
        fit(Logistic(), codes, Problem(np.arange(200), noisy, selection_labels=clean[:3]))
    with pytest.raises(UsageError, match="0 to 7, outside 0 to 2"):
        fit(Logistic(), codes, Problem(np.arange(200), noisy, selection_labels=np.where(clean == 2, 7, clean)))
