"""The losses against naive double loops in float64, gradients included."""

import math

import pytest
import torch
from torch import Tensor

from monoeval.training.contrastive import OBJECTIVES, info_nce, non_negative_info_nce, rep_relu


def naive(first: Tensor, second: Tensor, temperature: float, rectify: bool) -> Tensor:
    rows = [*first, *second]
    if rectify:
        rows = [row.clamp(min=0) for row in rows]
    half, total = len(first), torch.zeros((), dtype=torch.float64)

    def similarity(i: int, j: int) -> Tensor:
        return (rows[i] * rows[j]).sum() / (rows[i].norm() * rows[j].norm()) / temperature

    for i in range(2 * half):
        positive = (i + half) % (2 * half)
        others = torch.stack([similarity(i, j).exp() for j in range(2 * half) if j != i])
        total = total - (similarity(i, positive).exp() / others.sum()).log()
    return total / (2 * half)


def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator)
    return first.requires_grad_(), second.requires_grad_()


def test_info_nce_and_its_gradient_equal_the_double_loop():
    first, second = views()
    ours = info_nce(first, second, 0.2)
    theirs = naive(first, second, 0.2, rectify=False)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [first, second]), torch.autograd.grad(theirs, [first, second])
    )


def test_ncl_value_equals_the_double_loop_on_rectified_rows():
    first, second = views()
    torch.testing.assert_close(non_negative_info_nce(first, second, 0.2), naive(first, second, 0.2, rectify=True))


def test_ncl_gradient_is_the_rectified_gradient_times_the_slope_of_gelu():
    first, second = views()
    ours = torch.autograd.grad(non_negative_info_nce(first, second, 0.2), first)[0]
    rectified = first.detach().clamp(min=0).requires_grad_()
    upstream = torch.autograd.grad(naive(rectified, second.detach().clamp(min=0), 0.2, rectify=False), rectified)[
        0
    ]
    normal = torch.distributions.Normal(0.0, 1.0)
    x = first.detach()
    slope = normal.cdf(x) + x * normal.log_prob(x).exp()
    torch.testing.assert_close(ours, upstream * slope)


def test_rep_relu_is_relu_forwards_and_reaches_negative_units_backwards():
    x = torch.tensor([-0.5, 2.0], requires_grad=True)
    y = rep_relu(x)
    assert y.tolist() == [0.0, 2.0]
    assert torch.autograd.grad(y[0], x)[0][0] != 0


def test_identical_rows_give_the_loss_of_chance():
    same = torch.ones(6, 4)
    assert info_nce(same, same, 0.2).item() == pytest.approx(math.log(11), abs=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_of_zeros_keeps_loss_and_gradient_finite(objective):
    first = torch.zeros(3, 4, requires_grad=True)
    loss = OBJECTIVES[objective](first, torch.ones(3, 4), 0.2)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, first)[0]).all()
