"""Contrastive heads on planted views: what the loss compares, where gradients go, and what training changes."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from monoeval.adapters.heads import Pairs, projector
from monoeval.adapters.registry import build, controls_for
from monoeval.adapters.rows import TrainingRows, shuffled
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import fit_cached
from monoeval.errors import MonoevalError, UsageError
from monoeval.training.contrastive import info_nce

CPU = torch.device("cpu")
HEADS = ("cl-head", "ncl-head")
SMALL = {"width": 24, "hidden": 32, "n_views": 3, "steps": 40, "batch_size": 32, "learning_rate": 5e-3}


def make(method: str = "ncl-head", **params):
    return build(AdapterSpec(method=method, params={**SMALL, **params}))


def planted(images: int = 96, width: int = 10, views: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Images of six classes, and views of each that are the image with noise: [images, views...], float32."""
    draws = np.random.default_rng(seed)
    centres, classes = draws.normal(size=(6, width)), np.arange(images) % 6
    own = 3 + centres[classes] + 0.4 * draws.normal(size=(images, width))
    noise = 0.4 * draws.normal(size=(views, images, width))
    return [own.astype(np.float32), *(own + noise).astype(np.float32)]


def training_rows(feature_set, arrays=None, rows=None) -> TrainingRows:
    first, *views = planted() if arrays is None else arrays
    seen = [feature_set(view, f"view{number}") for number, view in enumerate(views)]
    return TrainingRows(feature_set(first), rows, CPU, seen)


def margin(adapter, first: np.ndarray, second: np.ndarray) -> float:
    """Mean cosine of the codes of two views of an image, minus that of views of different images."""
    codes = [adapter.encode(torch.from_numpy(view)).double().numpy() for view in (first, second)]
    one, two = (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-9) for z in codes)
    cosines = one @ two.T
    same = np.trace(cosines) / len(cosines)
    return float(same - (cosines.sum() - np.trace(cosines)) / (cosines.size - len(cosines)))


@pytest.mark.parametrize(
    ("method", "params"), [("cl-head", {}), ("ncl-head", {}), ("ncl-head", {"rectifier": "relu"})]
)
def test_training_pulls_together_views_that_it_never_saw(method, params, feature_set):
    arrays = planted(views=5)
    rows = training_rows(feature_set, arrays)
    untrained = make(method, steps=0, **params).fit(rows, seed=0)
    trained = make(method, steps=150, **params).fit(rows, seed=0)
    before, after = (margin(adapter, *arrays[4:6]) for adapter in (untrained, trained))
    assert after > before + 0.1
    assert trained.report()["final_loss"] < trained.report()["chance_loss"] - 1
    assert "final_loss" not in untrained.report()


def test_ncl_codes_are_non_negative_and_cl_codes_are_the_same_projection_with_its_sign(feature_set):
    rows = training_rows(feature_set)
    x = rows.batch(torch.arange(96))
    cl = make("cl-head").fit(rows, seed=0)
    signed = cl.encode(x)
    rectified = make("ncl-head").restore(cl.state()).encode(x)
    assert (signed < 0).any()
    np.testing.assert_array_equal(rectified, np.maximum(signed.numpy(), 0))
    ncl = make("ncl-head").fit(rows, seed=0)
    codes = ncl.encode(x)
    assert codes.dtype == torch.float32
    assert codes.shape == (96, ncl.width)
    assert (codes >= 0).all()
    assert ncl.report()["l0"] < 24 == cl.report()["l0"]


def test_rep_relu_has_the_values_of_relu_and_the_slope_of_gelu_by_finite_differences():
    z = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    compared = make().compared(z)
    np.testing.assert_allclose(compared.detach(), np.maximum(z.detach().numpy(), 0), atol=1e-12)
    slopes = torch.autograd.grad(compared.sum(), z)[0]

    def gelu(value: float) -> float:
        return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))

    for place, slope in zip(z.tolist(), slopes.tolist(), strict=True):
        assert slope == pytest.approx((gelu(place + 1e-6) - gelu(place - 1e-6)) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("rectifier", ["relu", "rep-relu"])
def test_gradients_reach_all_parameters_and_under_rep_relu_the_negative_rows_of_a_firing_latent(rectifier):
    """The loss compares products of codes, so a latent that is zero in the whole batch moves under neither."""
    torch.manual_seed(0)
    network = projector(6, 24, 30)
    with torch.no_grad():
        network[3].bias[:3] = -9
    pair = torch.cat([x := torch.randn(10, 6), x + 0.3 * torch.randn(10, 6)])
    projected = network(pair)
    projected.retain_grad()
    info_nce(*make(rectifier=rectifier).compared(projected).chunk(2), 0.2).backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).any()
    positive = projected > 0
    fires = positive.any(dim=0)
    assert 10 < fires.sum() <= 27
    assert not positive[:, fires].all()
    assert (positive.sum(dim=1) > 1).all()  # the cosine of a row with one active latent does not feel its size
    reached = positive if rectifier == "relu" else fires.expand_as(positive)
    assert torch.equal(projected.grad.abs() > 1e-12, reached)


def test_signed_heads_hand_the_loss_what_the_projector_gives():
    z = torch.randn(4, 3)
    assert torch.equal(make("cl-head").compared(z), z)
    assert torch.equal(make("cl-head").shown(z), z)


def test_folded_batch_norm_encodes_as_the_network_does_in_evaluation():
    torch.manual_seed(0)
    network = projector(5, 7, 4)
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(7) + 0.2)
    head = make("cl-head")
    head.mean, head.scale = torch.randn(5), torch.tensor(1.7)
    head._fold(network)
    x = torch.randn(9, 5)
    with torch.no_grad():
        expected = network.eval()((x - head.mean) / 1.7)
    torch.testing.assert_close(head.encode(x), expected)
    assert head.width == 4


@pytest.mark.parametrize("method", HEADS)
def test_a_code_does_not_depend_on_the_rest_of_its_batch(method, feature_set):
    rows = training_rows(feature_set)
    head = make(method).fit(rows, seed=0)
    x = rows.batch(torch.arange(96))
    whole, order = head.encode(x), torch.randperm(96)
    torch.testing.assert_close(head.encode(x[order]), whole[order])
    torch.testing.assert_close(torch.cat([head.encode(row) for row in x.split(1)]), whole)
    torch.testing.assert_close(head.encode(torch.cat([x[:3], 1e3 * x]))[:3], whole[:3])


@pytest.mark.parametrize("method", HEADS)
def test_offset_and_unit_of_the_features_do_not_matter(method, feature_set):
    arrays = planted()
    x = torch.from_numpy(arrays[0])
    first = make(method, steps=5).fit(training_rows(feature_set, arrays), seed=0)
    moved = training_rows(feature_set, [array * 64 - 128 for array in arrays])
    second = make(method, steps=5).fit(moved, seed=0)
    torch.testing.assert_close(first.encode(x), second.encode(x * 64 - 128), atol=1e-3, rtol=1e-3)


def test_the_seed_decides_everything_and_the_global_generator_nothing(feature_set):
    rows = training_rows(feature_set)
    torch.manual_seed(1)
    first = make(steps=5).fit(rows, seed=0).state()
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(2)
    second = make(steps=5).fit(rows, seed=0).state()
    other = make(steps=5).fit(rows, seed=1).state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["hidden"], other["hidden"])


def test_a_pair_is_the_same_rows_in_two_different_views(feature_set):
    """View v of row i is (v, i), so a batch tells what it was made of."""
    arrays = [np.stack([np.full(8, view), np.arange(8)], axis=1) for view in range(-1, 4)]
    rows = training_rows(feature_set, arrays, rows=np.array([1, 3, 4, 6, 7]))
    pairs, positions = Pairs(rows.views[:3], torch.Generator().manual_seed(0)), torch.tensor([4, 0, 2])
    assert len(pairs) == 5
    seen = set()
    for _ in range(60):
        first, second = pairs.batch(positions).chunk(2)
        for half in (first, second):
            assert half[:, 1].tolist() == [7, 1, 4]
            assert half[:, 0].unique().numel() == 1
        seen.add((first[0, 0].item(), second[0, 0].item()))
    assert seen == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_a_pass_takes_each_row_once_at_most_and_leaves_out_the_remainder():
    batches = list(islice(shuffled(10, 4, torch.Generator().manual_seed(0)), 5))
    assert [len(batch) for batch in batches] == [4] * 5
    for first, second in (batches[0:2], batches[2:4]):
        assert len({*first.tolist(), *second.tolist()}) == 8
    assert batches[0].tolist() != batches[2].tolist()


def test_measures_are_those_of_numpy(feature_set):
    arrays = planted()
    taken = np.arange(5, 70)
    head = make(width=60).fit(training_rows(feature_set, arrays, rows=taken), seed=0)
    codes = head.encode(torch.from_numpy(arrays[0][taken])).numpy()
    active, report = codes > 1e-5, head.report()
    assert report["l0"] == pytest.approx(active.sum(1).mean())
    assert report["dead_share"] == pytest.approx(1 - active.any(0).mean(), abs=1e-6)
    assert report["alive"] == pytest.approx((np.ptp(codes, axis=0) > 1e-5).mean(), abs=1e-6)
    assert report["chance_loss"] == pytest.approx(math.log(63))
    assert (report["width"], report["steps"]) == (60, 40)


def test_length_and_size_follow_the_data_unless_given(feature_set):
    rows = training_rows(feature_set, planted(images=20, width=3, views=4))
    head = build(AdapterSpec(method="cl-head", params={"width": 4})).fit(rows, seed=0)
    assert head.report()["steps"] == 300
    assert head.n_views == 4
    assert head.hidden.shape == (6, 3)
    assert build(AdapterSpec(method="cl-head")).settings.width == 2048


@pytest.mark.parametrize("method", HEADS)
def test_what_cannot_be_fitted_is_one_sentence(method, feature_set):
    arrays = planted(images=12)
    with pytest.raises(
        UsageError, match=rf"{method} tells images apart: give it two training rows or more, not 1"
    ):
        make(method).fit(training_rows(feature_set, arrays, rows=np.array([3])), seed=0)
    with pytest.raises(UsageError, match=rf"{method} learns from 3 augmented views .* was given 2"):
        make(method).fit(training_rows(feature_set, arrays[:3]), seed=0)
    with pytest.raises(UsageError, match="was given 0"):
        fit_cached(AdapterSpec(method=method), feature_set(arrays[0]), None, seed=0, device=CPU)
    for broken in (0, 2):
        spoilt = [array.copy() for array in arrays]
        spoilt[broken][[1, 4], 0] = np.nan
        with pytest.raises(MonoevalError, match="2 of 12 training rows have features that are not finite"):
            make(method).fit(training_rows(feature_set, spoilt), seed=0)
    with pytest.raises(MonoevalError, match="All 10 features are constant"):
        make(method).fit(training_rows(feature_set, [np.ones((12, 10))] * 5), seed=0)
    with pytest.raises(MonoevalError, match=rf"loss of {method} became nan at step \d+ of 40: set learning_rate"):
        make(method, learning_rate=1e38).fit(training_rows(feature_set, arrays), seed=0)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"batch_size": 1}, "batch_size cannot be 1"),
        ({"n_views": 1}, "n_views cannot be 1"),
        ({"rectifier": "gelu"}, "rectifier cannot be 'gelu'"),
        ({"temperature": 0.0}, "temperature cannot be 0"),
    ],
)
def test_wrong_settings_are_one_sentence(params, words):
    with pytest.raises(UsageError, match=words):
        make(**params)


def test_a_head_that_collapsed_says_so(feature_set, caplog):
    """Without training, latents biased far below zero never fire."""
    rows, head = training_rows(feature_set), make(steps=0)
    head.shown = lambda z_nm: (z_nm - 1e6).relu()
    head.fit(rows, seed=0)
    assert "Only 0 % of the codes of ncl-head vary" in caplog.text
    assert head.report()["dead_share"] == 1


def test_the_signed_twin_stands_beside_the_rectified_head():
    controls = controls_for(AdapterSpec(method="ncl-head", params={"width": 64, "rectifier": "relu"}))
    assert controls == [AdapterSpec(method="cl-head", params={"width": 64}), AdapterSpec(method="relu")]
    assert controls_for(AdapterSpec(method="cl-head")) == []


def test_a_width_may_follow_that_of_the_features(feature_set):
    head = build(AdapterSpec(method="cl-head", params={"width_factor": 1.5, "n_views": 2, "steps": 2}))
    rows = training_rows(feature_set)
    assert head.fit(rows, seed=0).encode(rows.batch(torch.arange(3))).shape == (3, round(1.5 * rows.width))
    with pytest.raises(UsageError, match="cl-head: give either width or width_factor"):
        build(AdapterSpec(method="cl-head", params={"width_factor": 1.5, "width": 8}))
