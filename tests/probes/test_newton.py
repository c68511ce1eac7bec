"""Newton's method for few rows against L-BFGS on the same problems, and where it must own up."""

import numpy as np
import pytest
import torch
from textbook import Textbook, clusters

from monoeval.probes.codes import TrainingCodes
from monoeval.probes.lbfgs import Descent
from monoeval.probes.logistic import minimise
from monoeval.probes.newton import Newton
from monoeval.probes.objective import Loss, Objective
from monoeval.probes.rows import RowSpace

C = 3


def problems(l2: float, loss: Loss, apart: float = 0.5) -> tuple[Objective, np.ndarray]:
    """Two groups of 20 rows, the second without a class, two label sets each; every fourth row weighs nothing."""
    array, labels = clusters(60, 30, C, apart)
    groups = [torch.arange(20), torch.from_numpy(np.flatnonzero(labels != 2)[-20:])]
    rows = RowSpace.of(TrainingCodes(torch.from_numpy(array)), groups, [20, 20])
    labels_gn = torch.from_numpy(labels)[torch.stack(groups)]
    labels_gpn = torch.stack([labels_gn, labels_gn.roll(1, 1)], 1)
    weights = torch.rand(2, 2, 20, generator=torch.Generator().manual_seed(0)) + 0.5
    weights[..., ::4] = 0
    l2_gp = torch.full((2, 2), l2, dtype=torch.float64)
    return Objective(rows, labels_gpn, weights, l2_gp, C, loss, True), array[:20]


@pytest.mark.parametrize("loss", [Loss(), Loss(smoothing=0.2)], ids=["ce", "smoothed"])
@pytest.mark.parametrize("l2", [1e-5, 1e-2])
def test_two_methods_one_optimum_rows_of_no_weight_and_missing_classes_included(l2: float, loss: Loss) -> None:
    objective, _ = problems(l2, loss)
    x, at = objective.origin()
    newton, other = Newton(objective, x, 1e-6, False), Descent(problems(l2, loss)[0], x, at, 1e-6, False)
    newton.run(1000)
    other.run(1000)
    assert newton.converged.all()
    torch.testing.assert_close(newton.value, other.value, rtol=2e-6, atol=0)
    torch.testing.assert_close(newton.at.losses, other.at.losses, rtol=0.02, atol=2e-3)
    assert (newton.gap <= 1e-6).all()


def test_it_starts_anywhere_and_ends_alike() -> None:
    objective, _ = problems(1e-3, Loss())
    x, _ = objective.origin()
    first = Newton(objective, x, 1e-6, False)
    first.run(1000)
    far = objective.adopt(x + 5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
    second, again = Newton(objective, far, 1e-6, False), Newton(objective, first.x, 1e-6, False)
    second.run(1000)
    again.run(1000)
    torch.testing.assert_close(second.value, first.value, rtol=1e-6, atol=0)
    torch.testing.assert_close(second.x, first.x, rtol=0, atol=2e-3 * float(first.x[..., :-1].abs().max()))
    assert (again.passes <= 2).all()


def test_what_it_proves_at_the_smallest_l2_is_true() -> None:
    objective, array = problems(1e-9, Loss(), apart=6.0)
    found = Newton(objective, objective.origin()[0], 1e-4, False)
    found.run(5000)
    assert found.converged.all()
    assert (found.gap <= 1e-4).all()
    textbook = Textbook(array, objective.labels[0, 0].numpy(), objective.share[0, 0].numpy(), C)
    smallest = textbook.value(*textbook.minimise(1e-9), 1e-9)
    assert float(found.value[0, 0] * (1 - found.gap[0, 0])) <= smallest * (1 + 1e-6)


def test_too_few_passes_are_owned_up_to() -> None:
    objective, _ = problems(1e-4, Loss())
    short, long = (Newton(objective, objective.origin()[0], 1e-4, False) for _ in range(2))
    short.run(1)
    long.run(1000)
    assert not short.converged.any()
    assert (short.passes == 1).all()
    assert (short.value > long.value).all()
    assert (short.value * (1 - short.gap) <= long.value).all()


def test_more_rows_than_are_few_go_on_with_it_where_float32_cannot_tell_and_leave_one_point() -> None:
    array, labels = clusters(530, 540, C, 0.1)
    rows = RowSpace.of(TrainingCodes(torch.from_numpy(array)), [torch.arange(530)], [530])
    l2 = torch.full((1, 1), 1e-9, dtype=torch.float64)
    labels_gpn, weights = torch.from_numpy(labels)[None, None], torch.ones(1, 1, 530)
    objective = Objective(rows, labels_gpn, weights, l2, C, Loss(), True)
    alone, both = Descent(objective, *objective.origin(), 1e-6, False), minimise(objective, tolerance=1e-6)
    alone.run(2000)
    assert float(alone.gap) > 1e-6
    assert float(both.gap) <= 1e-6
    there = objective(both.x)
    torch.testing.assert_close(both.at.loss, there.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(both.at.losses, there.losses)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_are_fitted_all_but_exactly_neither_break_nor_stall_it(seed: int) -> None:
    # where λ is 1e-9 a solve in float32 alone ended with NaN or short of the optimum on some of these
    rng = np.random.default_rng(seed)
    array = np.maximum(rng.standard_normal((12, 8)), 0).astype(np.float32)
    array[6:] = array[:6]
    labels = np.sort(rng.integers(0, 4, 12))
    rows = RowSpace.of(TrainingCodes(torch.from_numpy(array)), [torch.arange(12), torch.arange(6)], [12, 6])
    labels_gpn = torch.from_numpy(np.stack([labels, np.r_[labels[::2], np.zeros(6, np.int64)]]))[:, None]
    weights = torch.ones(2, 1, 12)
    weights[1, :, 6:] = 0
    x = None
    for l2 in 10.0 ** -np.arange(10):
        objective = Objective(
            rows, labels_gpn, weights, torch.full((2, 1), l2, dtype=torch.float64), 4, Loss(), False
        )
        found = Newton(objective, objective.origin()[0] if x is None else x, 1e-4, False)
        found.run(5000)
        assert found.converged.all()
        assert (found.gap <= 1e-4).all()
        x = found.x
