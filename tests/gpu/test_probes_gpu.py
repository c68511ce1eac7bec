"""The same probes on a GPU as on the CPU."""

import numpy as np
import pytest
import torch

from monoeval.probes.logistic import solve

pytestmark = pytest.mark.gpu


def test_the_solver_reaches_the_cpus_optimum_on_a_gpu() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 5, 600))
    centres = torch.from_numpy(rng.standard_normal((5, 40), dtype=np.float32))
    codes = centres[labels] + torch.from_numpy(rng.standard_normal((600, 40), dtype=np.float32))
    l2 = torch.tensor([[1e-4, 1e-2, 1.0]])
    weights = torch.ones(1, 3, 600)
    problem = (codes[None], labels[None, None].expand(1, 3, -1), weights, l2)
    cpu = solve(*problem, 5)
    gpu = solve(*(part.cuda() for part in problem), 5)
    assert gpu.converged_gp.all()
    np.testing.assert_allclose(gpu.objective_gp.cpu(), cpu.objective_gp, rtol=1e-5)
