"""Linear probes on sparse codes give what they give on the same codes made dense."""

import torch

from monoeval.adapters.base import SparseRows
from monoeval.probes.problem import Choice, LinearProbes


def test_sparse_codes_are_never_made_dense_and_give_the_same_logits(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    weights, intercept = torch.randn(3, 4, 50, generator=generator), torch.randn(3, 4, generator=generator)
    intercept[1, 2] = -torch.inf
    values = torch.rand(9, 5, generator=generator)
    values[2, 3:] = 0.0  # unused places point anywhere
    indices = torch.stack([torch.randperm(50, generator=generator)[:5] for _ in range(9)])
    indices[2, 3:] = indices[2, 0]
    codes = SparseRows(values, indices, 50)
    dense = codes.dense()
    monkeypatch.setattr(SparseRows, "dense", None)
    probes = LinearProbes(weights, intercept, [Choice()] * 3)
    for members in ([0, 1, 2], [2, 0], [1], [1, 1]):
        expected = torch.einsum("nm,pcm->npc", dense, weights[members]) + intercept[members]
        torch.testing.assert_close(probes.logits(codes, members), expected)
        torch.testing.assert_close(probes.logits(dense, members), expected)
