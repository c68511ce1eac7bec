"""Some latents of an adapter give the columns that all of them give."""

import numpy as np
import pytest
import torch

from monoeval.adapters.base import SparseRows
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.subset import Subset


@pytest.mark.parametrize("spec", [AdapterSpec(method="standardize"), AdapterSpec(method="random-topk")])
def test_codes_are_the_chosen_columns_in_rising_order(feature_set, spec):
    x = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    whole = build(spec).fit(TrainingRows(feature_set(x), None, torch.device("cpu")), seed=0)
    chosen = np.array([4, 0, 2])
    codes, part = whole.encode(torch.from_numpy(x)), Subset(whole, chosen).encode(torch.from_numpy(x))
    if isinstance(codes, SparseRows):
        assert isinstance(part, SparseRows)
        assert part.width == 3
        codes, part = codes.dense(), part.dense()
    assert torch.equal(part, codes[:, [0, 2, 4]])
