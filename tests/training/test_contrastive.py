"""The losses against naive double loops in float64, gradients included."""

import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from monoeval.backbones.spec import PretrainSpec
from monoeval.training import pretrain
from monoeval.training.contrastive import density, info_nce, rep_relu, sup_con


def naive(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    rows = [*first, *second]
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
    theirs = naive(first, second, 0.2)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [first, second]), torch.autograd.grad(theirs, [first, second])
    )


def test_rep_relu_is_relu_forwards_and_reaches_negative_units_backwards():
    x = torch.tensor([-0.5, 2.0], requires_grad=True)
    y = rep_relu(x)
    assert y.tolist() == [0.0, 2.0]
    assert torch.autograd.grad(y[0], x)[0][0] != 0


def test_identical_rows_give_the_loss_of_chance():
    same = torch.ones(6, 4)
    assert info_nce(same, same, 0.2).item() == pytest.approx(math.log(11), abs=1e-5)


@pytest.mark.parametrize("rectify", [torch.nn.Identity(), rep_relu], ids=["as it is", "rectified"])
def test_a_row_of_zeros_keeps_loss_and_gradient_finite(rectify):
    first = torch.zeros(3, 4, requires_grad=True)
    loss = info_nce(rectify(first), torch.ones(3, 4), 0.2)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, first)[0]).all()


def naive_sup_con(first: Tensor, second: Tensor, temperature: float, classes: list[int]) -> Tensor:
    """Equation 2 of Khosla et al., one row after the other."""
    rows, labels = [*first, *second], classes * 2
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        similar = {j: (rows[i] * rows[j]).sum() / (rows[i].norm() * rows[j].norm()) / temperature for j in others}
        denominator = torch.stack(list(similar.values())).exp().sum()
        positives = [j for j in others if labels[j] == labels[i]]
        total = total - torch.stack([(similar[j].exp() / denominator).log() for j in positives]).mean()
    return total / len(rows)


@pytest.mark.parametrize("classes", [[0, 1, 0, 2, 0], [3, 3, 3, 3, 3], [0, 1, 2, 3, 4]], ids=str)
def test_sup_con_and_its_gradient_equal_the_double_loop(classes):
    first, second = views()
    ours = sup_con(first, second, 0.2, torch.tensor(classes))
    theirs = naive_sup_con(first, second, 0.2, classes)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, [first, second]), torch.autograd.grad(theirs, [first, second])
    )


def test_sup_con_of_classes_with_one_image_each_is_info_nce():
    first, second = views()
    torch.testing.assert_close(sup_con(first, second, 0.2, torch.arange(5)), info_nce(first, second, 0.2))


def test_density_is_largest_where_all_entries_are_equal():
    assert density(torch.full((3, 16), 2.0)).item() == pytest.approx(0.25)
    assert density(torch.eye(4)).item() == pytest.approx(0.25)
    assert density(torch.tensor([[3.0, -4.0]])).item() == pytest.approx(0.7)


def loss_of_training(spec: PretrainSpec, projected: Tensor, classes: Tensor) -> Tensor:
    """What a pretraining minimises where its projector gives `projected` for both views of a batch."""
    training = SimpleNamespace(
        spec=spec,
        processes=pretrain.ALONE,
        classes=classes,
        _projected=lambda _: projected,
    )
    return pretrain._Training._loss(training, (torch.arange(len(classes)), torch.empty(0)))


def of_length_one(row: Tensor) -> Tensor:
    return row / (row * row).sum().sqrt()


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0], ids="density {:g}".format)
@pytest.mark.parametrize("first_normalised", [True, False], ids=["normalised first", "as it is"])
@pytest.mark.parametrize(
    ("objective", "rectifier"),
    [("simclr", "rep-relu"), ("supcon", "rep-relu"), *product(("ncl", "nscl"), ("rep-relu", "relu"))],
)
def test_the_whole_loss_and_its_gradient_equal_a_double_loop(objective, rectifier, first_normalised, weight):
    """Normalised, rectified with the slope of GELU or of ReLU, normalised again, less the mean absolute entry."""
    classes = [0, 1, 0, 2, 0]
    # the same in float32, in which the training computes its losses
    projected = (3 * torch.cat(views()).detach()).float().double().requires_grad_()
    network = {"network": "resnet18"} if first_normalised else {}
    spec = PretrainSpec(
        objective=objective, rectifier=rectifier, density=weight, normalise_first=first_normalised, **network
    )
    ours = loss_of_training(spec, projected, torch.tensor(classes))

    rows = torch.stack([of_length_one(row) if first_normalised else row for row in projected])
    positive = rows.detach().clamp(min=0) if objective in ("ncl", "nscl") else rows.detach()
    seen = positive.requires_grad_()
    theirs = (
        naive_sup_con(*seen.chunk(2), 0.2, classes)
        if objective in ("supcon", "nscl")
        else naive(*seen.chunk(2), 0.2)
    )
    absolute = torch.zeros((), dtype=torch.float64)
    for row in seen:
        for entry in of_length_one(row):
            absolute = absolute + entry.abs()
    theirs = theirs - weight * absolute / seen.numel()
    (upstream,) = torch.autograd.grad(theirs, seen)
    if objective in ("ncl", "nscl"):
        normal, x = torch.distributions.Normal(0.0, 1.0), rows.detach()
        gelu = normal.cdf(x) + x * normal.log_prob(x).exp()
        upstream = upstream * (gelu if rectifier == "rep-relu" else (x > 0).double())
    (expected,) = torch.autograd.grad(rows, projected, upstream)
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, projected)[0], expected, rtol=1e-4, atol=1e-6)
