"""Many small problems at many L2 in one call: each is what it is alone, and what float64 says."""

import numpy as np
import pytest
import torch
from textbook import Textbook, clusters, topk_codes

from monoeval.adapters.base import SparseRows
from monoeval.errors import UsageError
from monoeval.probes import logistic
from monoeval.probes.batch import batches
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.each import solve_each
from monoeval.probes.lbfgs import COPIES
from monoeval.probes.logistic import solve_grid
from monoeval.probes.problem import Problem

C, GRID = 3, (1e-1, 1e-6, 1e-3)


def problems(labels: np.ndarray) -> list[Problem]:
    """Of 5, 9, 30 and 100 rows; two share their rows, one lacks a class, one would be tuned on rows of its own."""
    rng = np.random.default_rng(0)
    made = []
    for n in (5, 30, 9, 100):
        rows = np.concatenate([[np.flatnonzero(labels == c)[0] for c in range(C)], rng.choice(400, n - C, False)])
        made.append(Problem(rows, labels[rows]))
    made.append(Problem(made[1].rows, np.roll(made[1].labels, 1)))
    two = np.flatnonzero(labels != 1)[:12]
    return [*made, Problem(two, labels[two]), Problem(two, labels[two], made[0].rows, made[0].labels)]


def codes(sparse: bool) -> tuple[TrainingCodes, np.ndarray, np.ndarray]:
    if not sparse:
        array, labels = clusters(400, 40, C, 0.5)
        return TrainingCodes(torch.from_numpy(array)), array, labels
    values, indices, labels = topk_codes(400, 40, 5, C)
    held = SparseRows(torch.from_numpy(values), torch.from_numpy(indices), 40)
    return TrainingCodes(held), held.dense().numpy(), labels


@pytest.mark.parametrize("sparse", [False, True])
def test_every_problem_reaches_the_optimum_of_float64_at_every_l2(sparse: bool) -> None:
    held, array, labels = codes(sparse)
    given = problems(labels)
    found = solve_each(held, given, GRID, C)
    assert found.converged_pl.all()
    assert float(found.gap_pl.max()) <= 1e-4
    for p, problem in enumerate(given):
        textbook = Textbook(array[problem.rows], problem.labels, np.ones(len(problem.rows)), C)
        for j, l2 in enumerate(GRID):
            w, b = textbook.minimise(l2)
            mine = found.weights_plcm[p, j].double().numpy(), found.intercept_plc[p, j].double().numpy()
            smallest = textbook.value(w, b, l2)
            assert float(found.objective_pl[p, j]) == pytest.approx(smallest, rel=1e-5)
            present = np.unique(problem.labels)
            np.testing.assert_allclose(mine[0][present], w[present], atol=3e-3 * np.abs(w).max())
    assert (found.intercept_plc[5, :, 1] == -torch.inf).all()
    assert (found.weights_plcm[5, :, 1] == 0).all()


def test_the_order_of_problems_and_of_l2s_and_validation_rows_change_nothing_that_matters() -> None:
    held, _, labels = codes(sparse=False)
    given = problems(labels)
    plain, again = solve_each(held, given, GRID, C), solve_each(held, given, GRID, C)
    assert torch.equal(plain.weights_plcm, again.weights_plcm)
    assert torch.equal(plain.intercept_plc, again.intercept_plc)
    other = solve_each(held, given[::-1], GRID[::-1], C)
    torch.testing.assert_close(other.objective_pl.flip(0, 1), plain.objective_pl, rtol=1e-6, atol=0)
    torch.testing.assert_close(plain.objective_pl[5], plain.objective_pl[6])


def test_problems_on_most_rows_are_what_the_grid_of_shared_rows_gives() -> None:
    held, _, labels = codes(sparse=False)
    noisy = np.roll(labels, 7)
    found = solve_each(held, [Problem(np.arange(400), labels), Problem(np.arange(400), noisy)], GRID, C)
    grid = solve_grid(held, torch.from_numpy(np.stack([labels, noisy])), GRID, C)
    torch.testing.assert_close(found.objective_pl, grid.objective_pl, rtol=2e-5, atol=0)


def test_equal_rows_give_class_frequencies_and_a_row_a_class_its_optimum_at_any_l2() -> None:
    array, _ = clusters(12, 20, C, 0.5)
    array[:6] = array[0]
    clash, alone = np.array([0, 0, 1, 1, 1, 2]), np.arange(4)
    given = [Problem(np.arange(6), clash), Problem(np.arange(6, 10), alone), Problem(np.array([0]), alone[2:3])]
    l2s = (1e3, 1.0, 1e-3, 1e-6, 1e-9)
    found = solve_each(TrainingCodes(torch.from_numpy(array)), given, l2s, 4)
    assert found.converged_pl.all()
    assert float(found.gap_pl.max()) <= 1e-4
    shares = np.bincount(clash) / 6
    assert found.objective_pl[0].numpy() == pytest.approx([-(shares * np.log(shares)).sum()] * 5)
    np.testing.assert_allclose(found.intercept_plc[0].softmax(1)[:, :3], np.tile(shares, (5, 1)), atol=1e-6)
    textbook = Textbook(array[6:10], alone, np.ones(4), 4)
    smallest = [textbook.value(*textbook.minimise(l2), l2) for l2 in l2s[:4]]
    assert found.objective_pl[1, :4].numpy() == pytest.approx(smallest, rel=1e-5)
    assert found.objective_pl[2].tolist() == [0.0] * 5


def test_what_batches_hold_is_bounded_by_their_rows_where_columns_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "WORKING_SET", 2**22)
    labels = np.arange(300) % C
    rng = np.random.default_rng(0)
    drawn = [rng.choice(300, 100, False) for _ in range(200)]
    given = [Problem(rows, labels[rows]) for rows in drawn]
    narrow = TrainingCodes(torch.from_numpy(rng.standard_normal((300, 4)).astype(np.float32)))
    made = list(batches(narrow, given, C, 0, False, copies=3))
    assert sorted(i for batch in made for i in batch.members) == list(range(200))
    assert len(made) > 1
    assert all(3 * C * batch.labels.numel() * 4 * COPIES <= 2**22 for batch in made)


def test_balanced_classes_weigh_the_same() -> None:
    held, array, labels = codes(sparse=False)
    rows = np.concatenate([np.flatnonzero(labels == c)[: 4 * (c + 1)] for c in range(C)])
    found = solve_each(held, [Problem(rows, labels[rows])], (1e-2,), C, balanced=True)
    weights = (1 / np.bincount(labels[rows]))[labels[rows]]
    textbook = Textbook(array[rows], labels[rows], weights, C)
    best = textbook.value(*textbook.minimise(1e-2), 1e-2)
    assert float(found.objective_pl) == pytest.approx(best, rel=1e-5)


def test_an_l2_of_nothing_and_a_problem_of_nothing_are_refused() -> None:
    held, _, labels = codes(sparse=False)
    for l2s, sentence in (
        ((1.0, 0.0), "An L2 of 0 was asked for, .* use a finite one above 0"),
        ((1.0, float("nan")), "An L2 of nan was asked for"),
        ((float("inf"), 1.0), "An L2 of inf was asked for"),
        ((), "at no L2: give one at least"),
    ):
        with pytest.raises(UsageError, match=sentence):
            solve_each(held, problems(labels), l2s, C)
        with pytest.raises(UsageError, match=sentence):
            solve_grid(held, torch.from_numpy(labels[None]), l2s, C)
    with pytest.raises(UsageError, match="without a row: give one at least"):
        solve_each(held, [Problem(np.arange(0), labels[:0])], (1.0,), C)
