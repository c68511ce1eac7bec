"""The written-out steps of TopK training, against autograd and torch's own topk."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from monoeval.adapters import topk
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.sae import TopKDictionary
from monoeval.adapters.settings import TrainedDictionarySettings
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.topk import BETAS, TopKSteps, aux_k, aux_share, largest

D, M, K = 12, 64, 5


def start(seed=0):
    """Encoder, its bias, decoder and its bias, away from symmetry."""
    generator = torch.Generator().manual_seed(seed)
    decoder = F.normalize(torch.randn(M, D, generator=generator), dim=1)
    return [
        0.8 * decoder + 0.05 * torch.randn(M, D, generator=generator),
        0.1 * torch.randn(M, generator=generator),
        decoder,
        0.1 * torch.randn(D, generator=generator),
    ]


def batch(seed, n=6):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(100 + seed))


def by_autograd(tensors, idle, batches, patience, rate, aux_weight):
    """The same steps as the method's formulas have them."""
    parameters = [t.clone().requires_grad_() for t in tensors]
    encoder, encoder_bias, decoder, decoder_bias = parameters
    optimiser = torch.optim.Adam(parameters, lr=rate, betas=BETAS)
    for x in batches:
        h = (x - decoder_bias) @ encoder.T + encoder_bias
        values, places = h.topk(K, dim=1)
        z = torch.zeros_like(h).scatter(1, places, values.relu())
        idle += len(x)
        idle[(z > 0).any(0)] = 0
        error = x - z @ decoder - decoder_bias
        loss = error.square().mean()
        dead = (idle >= patience).nonzero()[:, 0]
        if len(dead):
            loss = loss + aux_weight * aux_share(len(dead), D) * aux_k(h, error, decoder, dead)
        optimiser.zero_grad()
        loss.backward()
        with torch.no_grad():
            decoder.grad -= (decoder.grad * decoder).sum(1, keepdim=True) * decoder
            optimiser.step()
            decoder /= decoder.norm(dim=1, keepdim=True)
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("block", [16, 1024])
@pytest.mark.parametrize("patience", [60, 10_000])
@pytest.mark.parametrize("few", [0, 1, 4])
@pytest.mark.parametrize("bias", [0, -2])
def test_steps_are_those_of_autograd(monkeypatch, block, patience, few, bias):
    monkeypatch.setattr(topk, "BLOCK", block)
    monkeypatch.setattr(topk, "FEW", few)  # AuxK by pairs, by products with all dead latents, or either
    tensors, idle, idle_too = start(), torch.zeros(M), torch.zeros(M)
    tensors[1] += bias  # where it is low, some of the largest are negative: those do not fire
    idle[::7] = idle_too[::7] = 59.0  # some are about to be dead
    batches = [batch(i) for i in range(4)]
    wanted = by_autograd(tensors, idle_too, batches, patience, 1e-3, 0.5)
    steps = TopKSteps(*(t[None] for t in tensors), k=[K], aux_weight=0.5)
    before = [t.clone() for t in tensors]
    for x in batches:
        steps.step(x[None], idle[None], patience, 1e-3)
    assert torch.equal(idle, idle_too)
    assert (idle >= 60).any()
    assert (idle == 0).any()
    for ours, theirs, was in zip(tensors, wanted, before, strict=True):
        assert (ours - was).abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    torch.testing.assert_close(tensors[2].norm(dim=1), torch.ones(M))


def test_one_row_has_no_spread_for_auxk_to_explain():
    tensors, idle, idle_too = start(), torch.full((M,), 59.0), torch.full((M,), 59.0)
    wanted = by_autograd(tensors, idle_too, [batch(0, n=1)], 60, 1e-3, 0.5)
    TopKSteps(*(t[None] for t in tensors), k=[K], aux_weight=0.5).step(batch(0, n=1)[None], idle[None], 60, 1e-3)
    assert torch.equal(idle, idle_too)
    for ours, theirs in zip(tensors, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_dead_latents_move_by_auxk_alone():
    for aux_weight in (0.0, 0.5):
        tensors, idle = start(), torch.zeros(M)
        tensors[1][3] = -100.0  # never among the largest
        idle[3] = 1e6
        before = [t[3].clone() for t in tensors[:3]]
        alone = [t[None] for t in tensors]
        TopKSteps(*alone, k=[K], aux_weight=aux_weight).step(batch(0)[None], idle[None], 1e5, 1e-3)
        moved = [not torch.equal(t[3], was) for t, was in zip(tensors, before, strict=False)]
        # its pre-activation is negative, so that ReLU lets nothing through
        assert moved == [False] * 3
        tensors[1][3] = -0.5
        idle[3] = 1e6
        before = [t[3].clone() for t in tensors[:3]]
        steps = TopKSteps(*alone, k=[1], aux_weight=aux_weight)
        steps.step(batch(1)[None], idle[None], 1e5, 1e-3)
        if idle[3] > 0:  # it did not fire
            assert [not torch.equal(t[3], was) for t, was in zip(tensors, before, strict=False)] == [
                aux_weight > 0
            ] * 3


@pytest.mark.parametrize("block", [16, 24, 1024])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("few", [0, 1, 4])
def test_members_of_a_stack_become_what_they_would_alone(monkeypatch, block, shared, few):
    monkeypatch.setattr(topk, "BLOCK", block)
    monkeypatch.setattr(topk, "FEW", few)
    ks, n_steps = [K, 2, K, 1], 5
    starts = [start(seed) for seed in range(len(ks))]
    idle = torch.zeros(len(ks), M)
    idle[:, ::7] = 59.0
    idle[1] = 0  # one without dead latents
    batches = [[batch(10 * i + (0 if shared else s)) for s in range(len(ks))] for i in range(n_steps)]

    alone, idle_alone = [[t.clone() for t in tensors] for tensors in starts], idle.clone()
    for s, k in enumerate(ks):
        steps = TopKSteps(*(t[None] for t in alone[s]), k=[k], aux_weight=0.5)
        for i in range(n_steps):
            steps.step(batches[i][s][None], idle_alone[s][None], 60, 1e-3)

    stack = [torch.stack(tensors) for tensors in zip(*starts, strict=True)]
    steps = TopKSteps(*stack, k=ks, aux_weight=0.5)
    for i in range(n_steps):
        steps.step(batches[i][0][None] if shared else torch.stack(batches[i]), idle, 60, 1e-3)
    assert torch.equal(idle, idle_alone)
    for s, tensors in enumerate(alone):
        for ours, by_itself, was in zip(stack, tensors, starts[s], strict=True):
            assert torch.equal(ours[s], by_itself)
            assert not torch.equal(by_itself, was)


@pytest.mark.parametrize("ks", [[K, K, 2], [2, K, K]], ids=str)
def test_a_stack_done_at_once_agrees_with_members_in_turns(ks):
    """As on a GPU, where what has one k is searched at once and all latents are one block."""
    found = []
    for at_once in (False, True):
        stack = [torch.stack(tensors) for tensors in zip(*(start(seed) for seed in range(3)), strict=True)]
        idle = torch.zeros(3, M)
        idle[:, ::7] = 59.0
        steps = TopKSteps(*stack, k=ks, aux_weight=0.5)
        if at_once:
            steps._lay_out(on_cpu=False)
            assert [len(steps.blocks), len(steps.alike)] == [1, 2]
        for i in range(4):
            steps.step(torch.stack([batch(10 * i + s) for s in range(3)]), idle, 60, 1e-3)
        found.append(stack)
    for in_turns, together in zip(*found, strict=True):
        torch.testing.assert_close(in_turns, together, atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 30), st.integers(0, 10_000))
def test_the_largest_are_those_of_topk(n, eighths, k, seed):
    h = torch.randn(n, 8 * eighths, generator=torch.Generator().manual_seed(seed))
    k = min(k, h.shape[1])
    ours, theirs = largest(h, k).sort(dim=1).values, h.topk(k, dim=1).indices.sort(dim=1).values
    assert torch.equal(ours, theirs)


class ByAutograd(TopKDictionary):
    """The method's formulas in the loop that all dictionaries share."""

    method = "sae"
    betas = BETAS


ROWS, SIZE, BATCH = 96, {"width": 64, "k": 3, "steps": 24, "batch_size": 24}, 24
"""Four batches a pass."""


def training_rows(feature_set):
    x = np.random.default_rng(0).standard_normal((ROWS, D)) ** 3  # most latents of 64 do not fire on few rows
    return TrainingRows(feature_set(x), None, torch.device("cpu"))


def loose(rows, seed, **params):
    return ByAutograd(TrainedDictionarySettings(**{**SIZE, **params})).fit(rows, seed=seed)


def sae(**params):
    return build(AdapterSpec(method="sae", params={**SIZE, **params}))


def apart(one, other):
    return max(
        float((a - b).abs().max()) for a, b in zip(one.state().values(), other.state().values(), strict=True)
    )


@pytest.mark.parametrize("dead_epochs", [0.25, 0.5, 2.0])
@pytest.mark.parametrize("aux_weight", [0.0, 1.0])
def test_a_fit_teaches_dead_latents_as_its_settings_say(feature_set, aux_weight, dead_epochs):
    """A latent is dead after ¼, ½ or 2 passes of 4 batches each; with another window the parameters part."""
    rows, asked = training_rows(feature_set), {"aux_weight": aux_weight, "dead_epochs": dead_epochs}
    ours = sae(**asked).fit(rows, seed=0)
    assert apart(ours, loose(rows, 0, **asked)) < 2e-4
    for other in ({"aux_weight": 1 - aux_weight}, {"dead_epochs": 7 * dead_epochs}):
        if aux_weight or "aux_weight" in other:
            assert apart(ours, loose(rows, 0, **{**asked, **other})) > 5e-3


def test_members_that_are_fitted_together_teach_their_dead_latents(feature_set):
    rows, asked = training_rows(feature_set), {"aux_weight": 1.0, "dead_epochs": 0.5}
    wanted = [(3, 0), (3, 1), (2, 0)]
    members = [sae(**asked, k=k) for k, _ in wanted]
    type(members[0]).fit_together(members, rows, [seed for _, seed in wanted])
    for member, (k, seed) in zip(members, wanted, strict=True):
        assert apart(member, loose(rows, seed, **asked, k=k)) < 2e-4
        assert apart(member, loose(rows, seed, **{**asked, "aux_weight": 0.0}, k=k)) > 5e-3
        assert apart(member, loose(rows, seed, **{**asked, "dead_epochs": 3.5}, k=k)) > 5e-3


def test_reduced_products_train_as_well(monkeypatch):
    def missed(reduce):
        monkeypatch.setattr(topk, "REDUCED_WORK", 0.0 if reduce else float("inf"))
        monkeypatch.setattr(topk, "has_bfloat16", lambda _: True)
        tensors, idle = start(), torch.zeros(M)
        steps = TopKSteps(*(t[None] for t in tensors), k=[K], aux_weight=0.5)
        for i in range(150):
            steps.step(batch(i % 10)[None], idle[None], 60, 5e-3)
        x = torch.cat([batch(i) for i in range(10)])
        h = (x - tensors[3]) @ tensors[0].T + tensors[1]
        values, places = h.topk(K, dim=1)
        again = F.embedding_bag(places, tensors[2], per_sample_weights=values.relu(), mode="sum") + tensors[3]
        return float((x - again).square().mean() / x.square().mean())

    exact, reduced = missed(reduce=False), missed(reduce=True)
    assert exact < 0.4
    assert abs(reduced - exact) < 0.02
