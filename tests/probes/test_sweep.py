"""The choice among adapters: rules worked by hand, and losses against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from textbook import clusters

from monoeval.data.splits import folds
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Choice, Problem
from monoeval.probes.spec import GCE, KNN, Logistic, NearestMean, Ridge
from monoeval.probes.sweep import best_candidate

NAN = float("nan")


def choice(*losses, groups=None):
    rows = np.array(losses)
    return Choice(validation_loss=float(rows.mean()), losses=rows, clusters=groups)


def test_the_smallest_mean_loss_wins_and_the_earlier_of_equals():
    a, b, c = choice(3.0, 1), choice(1.0, 2), choice(2.0, 1)
    assert best_candidate([a, b, c]) == 1
    assert best_candidate([a, c, b]) == 1
    assert best_candidate([Choice(validation_loss=NAN), a]) == 1
    assert best_candidate([Choice(validation_loss=NAN)] * 2) == 0


def test_within_one_standard_error_the_earliest_wins():
    # against the third the first loses 3, 0, 0, 1: a mean of 1, its standard error 0.71; the second 0.25 ± 0.25
    worst, near, best = choice(4.0, 1, 1, 2), choice(2.0, 1, 1, 1), choice(1.0, 1, 1, 1)
    assert best_candidate([worst, near, best], "one-se") == 1
    assert best_candidate([worst, near, best], "min") == 2
    # in one group the four rows are one observation, and all that is known is the difference itself
    one = np.zeros(4, dtype=np.int64)
    alike = [choice(*c.losses, groups=one) for c in (worst, near, best)]
    assert best_candidate(alike, "one-se") == 2


@pytest.mark.parametrize("kind", [Logistic(), GCE(), Ridge(), NearestMean(), KNN()])
def test_codes_that_say_more_of_the_classes_are_chosen(kind):
    apart, labels = clusters(120, 6, 3, 1.5)
    rng = np.random.default_rng(1)
    noise = rng.normal(size=apart.shape).astype(np.float32)
    problems = [
        Problem(np.arange(120), labels),
        Problem(np.arange(60), labels[:60], np.arange(60, 120), labels[60:]),
    ]
    found = [
        fit_probes(TrainingCodes(torch.from_numpy(codes)), problems, 3, kind, judged=True).choices
        for codes in (noise, apart, noise * 2)
    ]
    assert [best_candidate(of_one) for of_one in zip(*found, strict=True)] == [1, 1]


def test_one_l2_is_judged_on_the_same_folds_where_that_is_asked_for():
    codes, labels = clusters(90, 5, 3, 0.7)
    problem, spec = Problem(np.arange(90), labels), Logistic(l2=(0.05,))
    held = TrainingCodes(torch.from_numpy(codes))
    plain = fit_probes(held, [problem], 3, spec)
    judged = fit_probes(held, [problem], 3, spec, judged=True)
    assert np.isnan(plain.choices[0].validation_loss)
    torch.testing.assert_close(judged.weights_pcm, plain.weights_pcm)
    losses = np.empty(90)
    fold = folds(labels, 5, None, 0)
    for f in range(5):
        out = fold == f
        model = LogisticRegression(C=1 / (0.05 * (~out).sum()), tol=1e-9, max_iter=5000).fit(
            codes[~out], labels[~out]
        )
        losses[out] = -model.predict_log_proba(codes[out])[np.arange(out.sum()), labels[out]]
    assert judged.choices[0].validation_loss == pytest.approx(losses.mean(), rel=1e-3)
    assert judged.choices[0].losses == pytest.approx(losses, rel=2e-2)
    assert not judged.choices[0].at_edge
