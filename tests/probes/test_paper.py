"""The paper's untuned probe against a plain autograd loop, and end to end on digits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import monoeval
from monoeval.adapters.base import Codes, SparseRows
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.features import FeatureSet
from monoeval.errors import UsageError
from monoeval.keys import draw_seed
from monoeval.probes import paper
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Problem
from monoeval.probes.spec import Paper, PaperCached

N, M, C = 90, 12, 4
SPEC = PaperCached(epochs=3, batch=16)


def made(seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (N,), generator=generator)
    means = torch.randn(C, M, generator=generator)
    return means[labels] + torch.randn(N, M, generator=generator), labels.numpy()


def plainly(views, labels, spec):
    """One probe by autograd in float64, with the optimisers written out."""
    draws = torch.Generator().manual_seed(draw_seed("paper probe", "weights"))
    weights = torch.empty(C, M).uniform_(-(M**-0.5), M**-0.5, generator=draws).double().requires_grad_()
    bias = torch.empty(C).uniform_(-(M**-0.5), M**-0.5, generator=draws).double().requires_grad_()
    velocity, drift = torch.zeros_like(weights), torch.zeros_like(bias)
    labels = torch.from_numpy(labels)
    size = min(spec.batch, len(labels))
    steps, step = len(labels) // size * spec.epochs, 0
    for epoch in range(spec.epochs):
        codes = views[epoch % len(views)].double()
        order = torch.randperm(
            len(labels), generator=torch.Generator().manual_seed(draw_seed("paper probe", "order", epoch))
        )
        for batch in order[: len(labels) // size * size].split(size):
            loss = F.cross_entropy(codes[batch] @ weights.T + bias, labels[batch])
            slope, tilt = torch.autograd.grad(loss, [weights, bias])
            rate, warm = spec.rate, 0.2 * steps
            if spec.schedule == "cosine":
                # linear warm-up over a fifth of the steps, half a cosine over the others
                rate *= (
                    (step + 1) / (warm + 1)
                    if step < warm
                    else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
                )
            ratio = 1.0
            if spec.optimiser == "lars":
                local = (
                    0.02 * weights.detach().norm() / (slope.norm() + spec.weight_decay * weights.detach().norm())
                )
                ratio = min(float(local) / rate, 1.0)
            with torch.no_grad():
                velocity = spec.momentum * velocity + ratio * (slope + spec.weight_decay * weights)
                drift = spec.momentum * drift + tilt
                weights -= rate * velocity
                bias -= rate * drift
            step += 1
    return weights.detach().float(), bias.detach().float()


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        PaperCached(epochs=3, batch=32, rate=0.02, weight_decay=0.1),
        PaperCached(optimiser="sgd", rate=0.3, epochs=3, batch=16),
        PaperCached(epochs=5),  # fewer rows than a batch
    ],
)
def test_equals_an_autograd_loop(spec):
    codes, labels = made()
    probes = fit_probes(TrainingCodes(codes), [Problem(np.arange(N), labels)], C, spec)
    weights, bias = plainly([codes], labels, spec)
    torch.testing.assert_close(probes.weights_pcm[0], weights, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probes.intercept_pc[0], bias, rtol=1e-4, atol=1e-5)
    assert probes.choices[0].converged
    assert probes.choices[0].l2 is None


def test_each_epoch_reads_the_next_view():
    (codes, labels), (other, _) = made(), made(1)
    views = [TrainingCodes(codes), TrainingCodes(other)]
    spec = Paper(epochs=3, batch=16, views=2)
    probes = fit_probes(views[0], [Problem(np.arange(N), labels)], C, spec, views=views)
    weights, _ = plainly([codes, other], labels, spec)
    torch.testing.assert_close(probes.weights_pcm[0], weights, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="3 views, not 2"):
        fit_probes(views[0], [Problem(np.arange(N), labels)], C, Paper(epochs=3), views=views)


@pytest.mark.parametrize(("weights", "codes"), [(1 << 26, 1 << 20), (1, 1), (2 * C * 16, 2 * 16 * M)])
def test_a_call_of_many_fits_each_as_alone(monkeypatch, weights, codes):
    data, labels = made()
    rng = np.random.default_rng(0)
    all_rows = np.arange(N)
    problems = [
        Problem(all_rows, np.where(rng.random(N) < rate, rng.integers(0, C, N), labels)) for rate in (0, 0.5, 0.9)
    ]
    for count in (7, 7, 40, 7):  # of which seven rows are one batch
        rows = rng.permutation(N)[:count]
        problems.append(Problem(rows, labels[rows]))
    alone = [fit_probes(TrainingCodes(data), [problem], C, SPEC) for problem in problems]
    monkeypatch.setattr(paper, "WEIGHTS", weights)
    monkeypatch.setattr(paper, "CODES", codes)
    probes = fit_probes(TrainingCodes(data), problems, C, SPEC)
    for i, one in enumerate(alone):
        torch.testing.assert_close(probes.weights_pcm[i], one.weights_pcm[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(probes.intercept_pc[i], one.intercept_pc[0], rtol=1e-4, atol=1e-6)


def test_it_does_not_matter_how_codes_are_held(tmp_path):
    codes, labels = made()
    codes = codes.where(codes > 0, 0).half().float()
    np.save(tmp_path / "a.npy", codes[:50].half().numpy())
    np.save(tmp_path / "b.npy", codes[50:].half().numpy())
    features = FeatureSet("codes", (tmp_path / "a.npy", tmp_path / "b.npy"))
    identity = build(AdapterSpec(method="identity")).fit(TrainingRows(features, None, torch.device("cpu")), seed=0)
    indices = torch.arange(M).expand(N, M).contiguous()
    held = [
        TrainingCodes(codes, scale=7.0),
        TrainingCodes(SparseRows(codes, indices, M), scale=0.1),
        TrainingCodes(Codes(features, identity, torch.device("cpu")), scale=3.0),
    ]
    expected = fit_probes(TrainingCodes(codes), [Problem(np.arange(N), labels)], C, SPEC)
    for some in held:
        probes = fit_probes(some, [Problem(np.arange(N), labels)], C, SPEC)
        torch.testing.assert_close(probes.logits(codes, [0]), expected.logits(codes, [0]), rtol=1e-4, atol=1e-5)


def test_unseen_classes_are_never_predicted():
    codes, labels = made()
    rows = np.flatnonzero(labels != 2)
    probes = fit_probes(TrainingCodes(codes), [Problem(rows, labels[rows])], C, SPEC)
    logits = probes.logits(codes, [0])[:, 0]
    assert torch.isneginf(logits[:, 2]).all()
    assert torch.isfinite(logits[:, [0, 1, 3]]).all()


def test_a_probe_that_diverges_leaves_the_others_alone():
    codes, labels = made()
    codes[-1] = 1e30
    problems = [Problem(np.arange(N - 1), labels[:-1]), Problem(np.arange(1, N), labels[1:])]
    spec = PaperCached(optimiser="sgd", epochs=3, batch=16)
    probes = fit_probes(TrainingCodes(codes), problems, C, spec)
    assert [choice.converged for choice in probes.choices] == [True, False]
    assert torch.isfinite(probes.weights_pcm[0]).all()
    assert torch.isnan(probes.logits(codes, [1])).all()


def test_the_optimiser_brings_the_papers_settings():
    assert PaperCached(optimiser="lars") == PaperCached()
    assert (Paper().rate, Paper().weight_decay, Paper().schedule) == (0.4, 1e-4, "cosine")
    sgd = Paper(optimiser="sgd", weight_decay=0.5)
    assert (sgd.rate, sgd.weight_decay, sgd.schedule) == (1.5, 0.5, "constant")
    assert Paper.model_validate_json(sgd.model_dump_json()) == sgd
    assert (Paper().n_views, Paper(views=8).n_views, Paper(views=80).n_views) == (50, 8, 50)


RECIPE = {
    "name": "tiny",
    "data": {"name": "digits", "limit": 100},
    "backbones": {"random": {"model": "test_resnet", "weights": "random", "image_size": 32}},
    "arms": [
        {"name": "random", "backbone": "random"},
        {"name": "random + relu", "backbone": "random", "method": "relu", "baseline": "random"},
    ],
    "seeds": 1,
    "scenarios": [{"name": "label-noise", "rates": [0, 0.4]}, {"name": "few-shot", "shots": [2], "repeats": 2}],
}


def test_on_views_of_digits(tmp_path, cache):
    log_losses = []
    for kind in ("paper", "paper-cached"):
        probe = {"kind": kind, "optimiser": "sgd", "epochs": 3, "batch": 10}
        rows = monoeval.run({**RECIPE, "probe": probe | ({"views": 2} if kind == "paper" else {})}, out=tmp_path)
        assert {(row.status, row.converged, row.l2) for row in rows} == {("ok", True, None)}
        log_losses.append([row.log_loss for row in rows])
        # training and test images as they are, and for `paper` two views of the former
        assert len(list((cache / "features").glob("*/entry.json"))) == 4
    assert np.abs(np.subtract(*log_losses)).min() > 1e-4


def test_a_diverged_probe_is_a_row_that_says_so(tmp_path):
    probe = {"kind": "paper-cached", "optimiser": "sgd", "rate": 1e38, "weight_decay": 1.0, "epochs": 3}
    rows = monoeval.run({**RECIPE, "probe": probe}, out=tmp_path)
    assert {(row.status, row.converged) for row in rows} == {("nan", False)}
    assert "not numbers" in str(rows[0].error)
