"""The same probes on a GPU as on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from monoeval.adapters.base import SparseRows
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.logistic import Grid, solve_grid
from monoeval.probes.objective import Loss, Objective
from monoeval.probes.problem import Problem
from monoeval.probes.rows import Rows, RowSpace, Shared
from monoeval.probes.spec import Logistic

pytestmark = pytest.mark.gpu
N, WIDTH, C = 600, 40, 5


def made(sparse: bool) -> tuple[torch.Tensor | SparseRows, torch.Tensor]:
    """Codes on the CPU, and two label sets [2, N]."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, C, N))
    centres = torch.from_numpy(rng.standard_normal((C, WIDTH), dtype=np.float32))
    codes = (centres[labels] + torch.from_numpy(rng.standard_normal((N, WIDTH), dtype=np.float32))) / 8
    if sparse:
        values, indices = codes.topk(6)
        values[::7, 3:], indices[::7, 3:] = 0, 0  # unused places
        return SparseRows(values, indices, WIDTH), torch.stack([labels, labels.roll(1)])
    return codes, torch.stack([labels, labels.roll(1)])


def on_gpu(codes: torch.Tensor | SparseRows) -> torch.Tensor | SparseRows:
    if isinstance(codes, SparseRows):
        return SparseRows(codes.values.cuda(), codes.indices.cuda(), codes.width)
    return codes.cuda()


@contextmanager
def never_waiting() -> Iterator[None]:
    """Raise where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", [Loss(), Loss(smoothing=0.1), Loss(q=0.7)], ids=["ce", "smoothing", "gce"])
def test_the_solver_reaches_the_cpus_optimum_on_a_gpu(loss: Loss, sparse: bool) -> None:
    codes, labels = made(sparse)

    def solve(codes: torch.Tensor | SparseRows, labels: torch.Tensor) -> Grid:
        return solve_grid(TrainingCodes(codes), labels, [1e-4, 1e-2, 1.0], C, loss=loss)

    cpu, gpu = solve(codes, labels), solve(on_gpu(codes), labels.cuda())
    assert gpu.weights_plcm.is_cuda
    assert gpu.converged_pl.all()
    np.testing.assert_allclose(gpu.objective_pl.cpu(), cpu.objective_pl, rtol=5e-5)
    difference = (gpu.weights_plcm.cpu() - cpu.weights_plcm).flatten(2).norm(dim=2)
    assert (difference <= 0.02 * cpu.weights_plcm.flatten(2).norm(dim=2)).all()


@pytest.mark.parametrize("kind", ["dense", "sparse", "few rows"])
def test_a_pass_never_waits_for_the_device(kind: str) -> None:
    codes, labels = made(kind == "sparse")
    held = TrainingCodes(on_gpu(codes))
    rows: Rows = Shared(held)
    if kind == "few rows":
        rows = RowSpace.of(held, [torch.arange(N, device="cuda")], [N])
    weights = torch.ones(1, 2, N, device="cuda")
    l2 = torch.full((1, 2), 1e-2, dtype=torch.float64, device="cuda")
    objective = Objective(rows, labels.cuda()[None], weights, l2, C, Loss(), True)
    x = torch.zeros(1, 2, C, rows.variances_gd.shape[1] + 1, device="cuda")
    expected = objective.weigh(x, objective(x)).value  # libraries and workspaces are set up by now
    torch.cuda.synchronize()
    with never_waiting():
        weighed = objective.weigh(x, objective(x))
    np.testing.assert_allclose(weighed.value.cpu(), expected.cpu())


def test_few_shot_probes_are_those_of_the_cpu() -> None:
    codes, labels = made(sparse=False)
    assert isinstance(codes, torch.Tensor)
    truth, rng = labels[0].numpy(), np.random.default_rng(1)
    problems = []
    for shots in (1, 2, 4, 8) * 3:
        order = rng.permutation(N)
        rows, held = (
            np.concatenate([order[truth[order] == c][start : start + shots] for c in range(C)])
            for start in (0, shots)
        )
        problems.append(Problem(rows, truth[rows], held, truth[held]))
    spec = Logistic(l2=(1e-2,))
    members = list(range(len(problems)))
    cpu = fit_probes(TrainingCodes(codes), problems, C, spec)
    gpu = fit_probes(TrainingCodes(codes.cuda()), problems, C, spec)
    assert all(choice.converged for choice in gpu.choices)
    scores = gpu.logits(codes.cuda(), members).cpu().softmax(2)
    torch.testing.assert_close(scores, cpu.logits(codes, members).softmax(2), atol=5e-3, rtol=0)
    tuned = fit_probes(TrainingCodes(codes.cuda()), problems, C, Logistic())
    assert all(choice.converged and np.isfinite(choice.validation_loss) for choice in tuned.choices)
