"""Ridge in closed form against scikit-learn, and its temperature against scipy's minimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.linear_model import Ridge as TheirRidge

from monoeval.adapters.base import Codes, SparseRows
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import NoSettings
from monoeval.adapters.simple import Identity
from monoeval.backbones.features import FeatureSet
from monoeval.errors import UsageError
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.held_out import Judged, calibrate, shared_rows
from monoeval.probes.problem import Problem
from monoeval.probes.spec import KNN, NearestMean, Ridge

GRID = Ridge().l2


def data(n=150, width=8, n_classes=3, apart=0.8, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    codes = rng.normal(size=(n_classes, width))[labels] * apart + rng.normal(size=(n, width)) + 3
    codes /= np.sqrt(((codes - codes.mean(0)) ** 2).sum(1).mean())
    return codes.astype(np.float32), labels


def sparse(n=120, width=60, k=3, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % n_classes)
    indices = np.stack([rng.choice(width // 2, k, replace=False) + y * 10 for y in labels])
    values = rng.exponential(size=(n, k)).astype(np.float32)
    values[::7, -1] = 0
    return SparseRows(torch.from_numpy(values), torch.from_numpy(indices), width), labels


def fit(codes, problems, n_classes=3, spec=None, scale=1.0):
    held = codes if isinstance(codes, SparseRows) else torch.from_numpy(codes)
    return fit_probes(TrainingCodes(held, scale), problems, n_classes, spec or Ridge())


def theirs(codes, labels, n_classes, l2, test):
    """Scores of least squares on one-hot labels, minus infinity for unseen classes."""
    model = TheirRidge(alpha=l2 * len(codes)).fit(codes.astype(float), np.eye(n_classes)[labels])
    scores = model.predict(test.astype(float))
    scores[:, np.setdiff1d(np.arange(n_classes), labels)] = -np.inf
    return scores


def best_scale(scores, labels):
    """By a scalar minimiser, over log(scale), of the objective that `calibrate` states."""
    seen = np.isfinite(scores)
    own = np.take_along_axis(scores, labels[:, None], 1)[:, 0]
    use = np.isfinite(own)
    mean = np.where(seen, scores, 0).sum(1) / seen.sum(1)
    target = own[use] - (own[use] - mean[use]) / (use.sum() + 1)

    def objective(log_scale):
        scale = np.exp(log_scale)
        return (logsumexp(scale * scores[use], axis=1) - scale * target).mean()

    found = minimize_scalar(objective, bounds=(-10, 15), method="bounded", options={"xatol": 1e-10})
    scale = np.exp(found.x)
    return scale, (logsumexp(scale * scores[use], axis=1) - scale * own[use])


def by_hand(codes, labels, n_classes, fold, grid):
    """Per L2: scale and held-out losses, with scikit-learn."""
    out = {}
    for l2 in grid:
        scores = np.empty((len(labels), n_classes))
        for f in np.unique(fold):
            here = fold == f
            scores[here] = theirs(codes[~here], labels[~here], n_classes, l2, codes[here])
        out[l2] = best_scale(scores, labels)
    return out


@pytest.mark.parametrize("shape", [(150, 8), (40, 90)], ids=["covariance", "gram"])
@pytest.mark.parametrize("apart", [0.3, 3.0])
def test_selects_and_fits_as_scikit_learn_with_the_same_folds(shape, apart):
    codes, labels = data(*shape, apart=apart)
    problem = Problem(np.arange(len(labels)), labels)
    probes = fit(codes, [problem])
    choice = probes.choices[0]
    fold, _ = shared_rows([problem], torch.device("cpu"))[0].folds(5)
    grid = [*GRID, *(10.0**k for k in (-9, -8, -7, -6, 1, 2, 3))]
    found = by_hand(codes, labels, 3, fold, grid)
    nearest = min(grid, key=lambda l2: abs(np.log(l2 / choice.l2)))
    losses = {l2: loss.mean() for l2, (_, loss) in found.items()}
    assert losses[nearest] <= min(losses.values()) * (1 + 1e-4)
    assert choice.validation_loss == pytest.approx(losses[nearest], rel=1e-3)
    assert choice.measures["temperature"] == pytest.approx(1 / found[nearest][0], rel=2e-3)
    expected = theirs(codes, labels, 3, choice.l2, codes) / choice.measures["temperature"]
    assert np.allclose(probes.logits(torch.from_numpy(codes), [0])[:, 0], expected, atol=2e-3, rtol=1e-3)


def test_the_scale_minimises_the_log_loss():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (300, 3))
    scores = rng.normal(size=(300, 3, 4)) + 2 * np.eye(4)[labels] * np.array([0.0, 1.0, 20.0])[:, None]
    scores *= np.array([1e-4, 1.0, 1e3])[:, None]  # uninformative, usual, separable
    seen = torch.ones(3, 4, dtype=torch.bool)
    seen[1, 3] = False
    judged = Judged(torch.from_numpy(scores).float(), torch.from_numpy(labels), seen)
    ours = calibrate([judged])
    for p in (1, 2):
        offset = np.where(seen[p], 0, -np.inf)
        scale, losses = best_scale(scores[:, p] + offset, labels[:, p])
        assert float(ours.scale_p[p]) == pytest.approx(scale, rel=1e-3)
        known = ours.losses_vp[:, p][~ours.losses_vp[:, p].isnan()]
        assert np.allclose(known, losses, atol=1e-3)
    assert float(ours.losses_vp[:, 0].mean()) <= np.log(4) + 1e-3
    halves = [Judged(judged.scores_vpc[i], judged.labels_vp[i], seen) for i in (slice(0, 99), slice(99, None))]
    assert torch.allclose(calibrate(halves, ours.scale_p * 30).scale_p[1:], ours.scale_p[1:], rtol=1e-4)


def test_many_rows_hold_out_a_fifth_and_score_no_more_than_they_may(monkeypatch):
    monkeypatch.setattr("monoeval.probes.held_out.MANY_ROWS", 100)
    codes, labels = data(200)
    problem = Problem(np.arange(200), labels)
    fold, scored = shared_rows([problem], torch.device("cpu"))[0].folds(5)
    assert [len(s) for s in scored] == [40]
    choice = fit(codes, [problem], spec=Ridge(l2=(0.01,))).choices[0]
    held = fold == 0
    scores = theirs(codes[~held], labels[~held], 3, 0.01, codes[held])
    assert choice.validation_loss == pytest.approx(best_scale(scores, labels[held])[1].mean(), rel=1e-3)
    monkeypatch.setattr("monoeval.probes.held_out.JUDGED", 30)
    _, fewer = shared_rows([problem], torch.device("cpu"))[0].folds(5)
    assert len(fewer[0]) == 30
    assert set(fewer[0]) < set(scored[0])


def test_shots_are_tuned_on_their_validation_rows_and_fitted_on_the_shots_alone():
    codes, labels = data(200, 8)
    for n in (6, 60):  # fewer and more rows than columns
        rows, held = np.arange(n), np.arange(120, 180)
        rows = np.concatenate([np.flatnonzero(labels[:120] == c)[: n // 3] for c in range(3)])
        probes = fit(codes, [Problem(rows, labels[rows], held, labels[held])])
        choice = probes.choices[0]
        scores = theirs(codes[rows], labels[rows], 3, choice.l2, codes[held])
        scale, losses = best_scale(scores, labels[held])
        assert choice.validation_loss == pytest.approx(losses.mean(), rel=1e-3)
        assert choice.measures["temperature"] == pytest.approx(1 / scale, rel=2e-3)
        ours = probes.logits(torch.from_numpy(codes[held]), [0])[:, 0]
        assert np.allclose(ours, scores * scale, atol=2e-3 * np.abs(scores * scale).max())


def test_groups_stay_in_one_fold():
    labels, groups = data(90)[1], np.repeat(np.arange(30), 3)
    fold, _ = shared_rows([Problem(np.arange(90), labels, groups=groups)], torch.device("cpu"))[0].folds(5)
    assert all(len(np.unique(fold[groups == g])) == 1 for g in range(30))


@pytest.mark.parametrize("width", [8, 400], ids=["covariance", "gram"])
def test_a_probe_depends_neither_on_the_others_nor_on_chunks(monkeypatch, width):
    codes, labels = data(200, width)
    rng = np.random.default_rng(1)
    noisy = [np.where(rng.random(200) < r, rng.integers(0, 3, 200), labels) for r in (0.2, 0.6)]
    few = np.arange(0, 200, 5)
    problems = [
        *(Problem(np.arange(200), y) for y in (labels, *noisy)),
        Problem(few, labels[few]),
        Problem(np.arange(200)[::-1].copy(), labels[::-1].copy()),
    ]
    together = fit(codes, problems).logits(torch.from_numpy(codes), [0, 1, 2, 3, 4])
    monkeypatch.setattr("monoeval.probes.held_out.CHUNK_ROWS", 7)
    monkeypatch.setattr("monoeval.probes.held_out.SCORES", 1)
    monkeypatch.setattr("monoeval.probes.held_out.IN_CACHE", 300)
    monkeypatch.setattr("monoeval.probes.ridge.COLUMNS", 16)
    for i, problem in enumerate(problems):
        alone = fit(codes, [problem]).logits(torch.from_numpy(codes), [0])[:, 0]
        assert torch.allclose(together[:, i], alone, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("n", [120, 40], ids=["covariance", "gram"])
def test_sparse_codes_equal_dense_ones(monkeypatch, n):
    codes, labels = sparse(n)
    noisy = np.roll(labels, 1)
    problems = [Problem(np.arange(n), labels), Problem(np.arange(n), noisy)]
    monkeypatch.setattr("monoeval.probes.ridge.SCATTERED", 50)
    ours = fit(codes, problems, spec=Ridge(l2=(1e-3, 1e-1)), scale=2.0)
    dense = fit(codes.dense().numpy(), problems, spec=Ridge(l2=(1e-3, 1e-1)), scale=2.0)
    assert [c.l2 for c in ours.choices] == [c.l2 for c in dense.choices]
    assert torch.allclose(ours.logits(codes, [0, 1]), dense.logits(codes.dense(), [0, 1]), atol=1e-3)
    halved = fit((codes.dense() / 2).numpy(), problems, spec=Ridge(l2=(1e-3, 1e-1)))
    assert torch.allclose(halved.logits(codes.dense() / 2, [0, 1]), ours.logits(codes, [0, 1]), atol=1e-3)


@pytest.mark.parametrize("spec", [Ridge(), NearestMean(), KNN()], ids=lambda s: s.kind)
def test_a_stream_equals_codes_in_memory(tmp_path, spec):
    codes, labels = data(150)
    np.save(tmp_path / "a.npy", codes[:90])
    np.save(tmp_path / "b.npy", codes[90:])
    features = FeatureSet("key", (tmp_path / "a.npy", tmp_path / "b.npy"))
    cpu = torch.device("cpu")
    stream = Codes(features, Identity(NoSettings()).fit(TrainingRows(features, None, cpu), seed=0), cpu)
    some = np.arange(3, 140)
    problems = [Problem(some, labels[some])]
    ours, held = (fit_probes(TrainingCodes(x, 2.0), problems, 3, spec) for x in (stream, torch.from_numpy(codes)))
    test = torch.from_numpy(codes)
    assert torch.equal(ours.logits(test, [0]), held.logits(test, [0]))


def test_a_missing_class_is_never_predicted_and_a_row_a_class_is_enough():
    codes, labels = data(60)
    some = np.flatnonzero(labels != 1)
    probes = fit(codes, [Problem(some, labels[some])])
    logits = probes.logits(torch.from_numpy(codes), [0])[:, 0]
    assert (logits[:, 1] == -torch.inf).all()
    expected = theirs(codes[some], labels[some], 3, probes.choices[0].l2, codes)
    expected /= probes.choices[0].measures["temperature"]
    assert np.allclose(logits[:, [0, 2]], expected[:, [0, 2]], atol=2e-3, rtol=1e-3)
    one_each = np.array([np.flatnonzero(labels == c)[0] for c in range(3)])
    lone = fit(codes, [Problem(one_each, labels[one_each])])
    assert np.isnan(lone.choices[0].validation_loss)
    assert (lone.logits(torch.from_numpy(codes[one_each]), [0])[:, 0].argmax(1).numpy() == labels[one_each]).all()


def test_permuted_labels_give_chance():
    codes, labels = data(1200, 8)
    wrong = np.random.default_rng(0).permutation(labels)
    probes = fit(codes[:600], [Problem(np.arange(600), wrong[:600])])
    correct = probes.logits(torch.from_numpy(codes[600:]), [0])[:, 0].argmax(1).numpy() == wrong[600:]
    assert abs(correct.mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / 600)
    assert probes.choices[0].validation_loss == pytest.approx(np.log(3), abs=0.02)


def test_the_grid_is_extended_and_its_end_reported():
    codes, labels = data(60, 200, apart=0.3)
    choice = fit(codes, [Problem(np.arange(60), labels)], spec=Ridge(l2=(1e-4, 1e-3))).choices[0]
    assert choice.l2 > 2e-3
    assert not choice.at_edge
    codes[:, 0] = 1e-5 * (labels == 2)  # a perfect sign that any larger L2 shrinks away
    codes, labels = codes[:, :20], (labels == 2).astype(int)
    choice = fit(codes, [Problem(np.arange(60), labels)], spec=Ridge(l2=(1e-8, 1e-7))).choices[0]
    assert choice.l2 == pytest.approx(1e-9)
    assert choice.at_edge


def test_codes_too_wide_and_too_many_are_refused(monkeypatch):
    monkeypatch.setattr("monoeval.probes.ridge.WIDEST", 7)
    codes, labels = data(20, 8)
    with pytest.raises(UsageError, match="--probe logistic"):
        fit(codes, [Problem(np.arange(20), labels)])
    fit(codes, [Problem(np.arange(7), labels[:7])])
