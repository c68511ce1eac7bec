"""LARS against steps worked by hand, torch's SGD, and the property it is made for."""

import pytest
import torch

from monoeval.training.optimisers import LARS

WEIGHTS, GRADIENT = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])


def test_two_steps_by_hand():
    weights, bias = WEIGHTS.clone(), torch.tensor([1.0])
    optimiser = LARS([weights, bias], trust=0.5, momentum=0.9, weight_decay=0.1)
    optimiser.step([GRADIENT, torch.tensor([2.0])], 0.2)
    # λ = 0.5 · 5 / (2 + 0.1 · 5) = 1; v = (0, 2) + 0.1 · (3, 4)
    torch.testing.assert_close(weights, torch.tensor([[3 - 0.2 * 0.3, 4 - 0.2 * 2.4]]))
    torch.testing.assert_close(bias, torch.tensor([1 - 0.2 * 2]))
    optimiser.step([torch.zeros(1, 2), torch.zeros(1)], 0.1)
    # no gradient: neither scaled nor decayed, so only nine tenths of the velocity are left
    torch.testing.assert_close(weights, torch.tensor([[2.94 - 0.1 * 0.27, 3.52 - 0.1 * 2.16]]))
    torch.testing.assert_close(bias, torch.tensor([0.6 - 0.1 * 1.8]))


@pytest.mark.parametrize(("trust", "step"), [(0.01, 0.02), (10.0, 0.2)])
def test_clipped_no_layer_moves_faster_than_under_sgd(trust, step):
    weights = WEIGHTS.clone()
    LARS([weights], trust=trust, weight_decay=0.1, clip=True).step([GRADIENT], 0.2)
    # min(λ, γ): λ is 0.02 or 20, γ is 0.2
    torch.testing.assert_close(weights, WEIGHTS - step * (GRADIENT + 0.1 * WEIGHTS))


def test_the_scale_of_the_loss_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 3, 4, 5, 6, generator=generator)  # a kernel, as of a convolution
    moved = []
    for scale in (1, 1000):
        weights = start.clone()
        LARS([weights]).step([scale * gradient], 0.1)
        moved.append(weights - start)
        assert (weights - start).norm().item() == pytest.approx(0.1 * 1e-3 * start.norm().item(), rel=1e-3)
    torch.testing.assert_close(*moved)


def test_zero_weights_start_moving():
    weights = torch.zeros(1, 2)
    LARS([weights], weight_decay=0.1).step([GRADIENT], 0.5)
    torch.testing.assert_close(weights, -0.5 * GRADIENT)


def test_without_trust_it_is_sgd():
    generator = torch.Generator().manual_seed(1)
    start, *gradients = torch.randn(6, 4, 3, generator=generator)
    ours, theirs = start.clone(), start.clone()
    reference = torch.optim.SGD([theirs], lr=1.0, momentum=0.8, weight_decay=0.05)
    optimiser = LARS([ours], trust=None, momentum=0.8, weight_decay=0.05)
    for step, gradient in enumerate(gradients):
        theirs.grad, reference.param_groups[0]["lr"] = gradient, 0.1 * (step + 1)
        reference.step()
        optimiser.step([gradient], 0.1 * (step + 1))
    torch.testing.assert_close(ours, theirs)


def test_a_stack_of_layers_moves_as_each_alone():
    generator = torch.Generator().manual_seed(2)
    weights, gradients = torch.randn(2, 3, 4, 5, generator=generator) * torch.tensor([1.0, 10, 100])[:, None, None]
    bias, slopes = torch.randn(2, 3, 4, generator=generator)
    alone = [(weights[p].clone(), bias[p].clone()) for p in range(3)]
    stacked = LARS([weights, bias], trust=0.02, weight_decay=1e-2, clip=True, layers=1)
    single = [LARS(list(pair), trust=0.02, weight_decay=1e-2, clip=True) for pair in alone]
    for _ in range(3):
        stacked.step([gradients, slopes], 0.3)
        for p in range(3):
            single[p].step([gradients[p], slopes[p]], 0.3)
    for p in range(3):
        torch.testing.assert_close((weights[p], bias[p]), alone[p])
