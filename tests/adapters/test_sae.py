"""The TopK autoencoder by hand-worked examples, finite differences and known dictionaries."""

import logging

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from monoeval.adapters import dictionary
from monoeval.adapters.base import Codes
from monoeval.adapters.dictionary import Schedule, Training, remove_parallel
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.sae import TopKDictionary
from monoeval.adapters.settings import TrainedDictionarySettings
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.topk import aux_k
from monoeval.errors import MonoevalError, UsageError

CPU = torch.device("cpu")


def make(method: str = "sae", **params):
    return build(AdapterSpec(method=method, params=params))


def gaussian(rows: int = 200, width: int = 12, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, width)) * generator.uniform(0.5, 2, width) + 5


def restored(**tensors):
    """An adapter of one feature-scale-one dictionary with the given tensors."""
    width, dims = tensors["encoder"].shape
    rest = {
        "mean": torch.zeros(dims), "scale": torch.tensor(1.0), "encoder_bias": torch.zeros(width),
        "decoder": tensors["encoder"], "decoder_bias": torch.zeros(dims), "k": torch.tensor(1),
    }  # fmt: skip
    return make().restore({**rest, **tensors})


def test_aux_k_on_three_numbers():
    """Two rows, two features, e = (1, 0) and (0, 1); latents 1 and 2 are dead, k_aux = min(2/2, 2) = 1.

    Row 0 picks latent 1 (3 > 2), row 1 picks latent 2 (−1 > −4), rectified to 0. With d_1 = (1, 0) and
    d_2 = (0, 1): ê = (3, 0), (0, 0); mean (e − ê)² = (4 + 0 + 0 + 1) / 4 = 5/4. The mean row of e is
    (1/2, 1/2), so mean (e − ē)² = 1/4, and the loss is 5.
    """
    h = torch.tensor([[9.0, 3.0, 2.0], [9.0, -4.0, -1.0]])
    decoder = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    assert aux_k(h, torch.eye(2), decoder, torch.tensor([1, 2])).item() == pytest.approx(5.0)


def test_aux_k_of_an_error_that_does_not_vary_is_zero():
    h, decoder = torch.zeros(2, 3), torch.eye(3)[:, :2]
    assert aux_k(h, torch.ones(2, 2), decoder, torch.tensor([0])).item() == 0
    assert aux_k(h, torch.zeros(2, 2), decoder, torch.tensor([0])).item() == 0


def test_aux_k_moves_dead_selected_latents_only_and_their_encoder_rows_too():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=generator)
    encoder = torch.randn(6, 4, generator=generator, requires_grad=True)
    decoder = torch.randn(6, 4, generator=generator, requires_grad=True)
    error = torch.randn(5, 4, generator=generator, requires_grad=True)
    dead = torch.tensor([1, 4, 5])
    h = x @ encoder.T
    aux_k(h, error, decoder, dead).backward()
    among = h.detach()[:, dead]
    chosen = torch.zeros_like(among).scatter(1, among.topk(2, dim=1).indices, 1.0) * (among > 0)
    reached = set(dead[chosen.any(dim=0)].tolist())
    for parameter in (encoder, decoder):
        assert set(parameter.grad.abs().sum(dim=1).nonzero().squeeze(1).tolist()) == reached
    assert reached
    assert error.grad is None


def test_a_worked_encoding():
    """x = (7, 1) is centred by (1, 1) and halved to (3, 0); b_d = (1, 0) leaves (2, 0), so h = (2, 1.2 + 0.5)."""
    encoder = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    adapter = restored(
        encoder=encoder, encoder_bias=torch.tensor([0.0, 0.5, 0.0]), decoder_bias=torch.tensor([1.0, 0.0]),
        mean=torch.tensor([1.0, 1.0]), scale=torch.tensor(2.0), k=torch.tensor(2),
    )  # fmt: skip
    codes = adapter.encode(torch.tensor([[7.0, 1.0]]))
    torch.testing.assert_close(codes.dense(), torch.tensor([[2.0, 1.7, 0.0]]))
    rebuilt = torch.tensor([[2 + 1.7 * 0.6 + 1, 1.7 * 0.8]])
    torch.testing.assert_close(adapter.decode(codes), rebuilt * 2 + 1)


def test_top_k_rectifies_what_it_selects():
    adapter = restored(encoder=torch.tensor([[1.0], [-1.0]]), k=torch.tensor(2))
    assert adapter.encode(torch.tensor([[3.0]])).dense().tolist() == [[3.0, 0.0]]


def test_the_gradient_is_that_of_the_stated_loss():
    """Finite differences of mean (x − x̂)² + α·scale·AuxK, written out densely, against autograd's result."""
    torch.manual_seed(0)
    adapter = make(width=5, k=1)
    x = torch.randn(4, 3, dtype=torch.float64)
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    shapes = ((5, 3), (5,), (5, 3), (3,))
    values = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    values[2] /= values[2].norm(dim=1, keepdim=True)
    adapter.k, adapter.width = 1, 5
    for name, value in zip(names, values, strict=True):
        setattr(adapter, name, torch.nn.Parameter(value.clone()))
    training = Training(Schedule(1, 4, 0.0), 10, torch.full((5,), 100.0))

    def dense(encoder, bias, decoder, offset):
        h = (x - offset) @ encoder.T + bias
        z = torch.zeros_like(h).scatter(1, h.argmax(1, keepdim=True), h.amax(1, keepdim=True)).clamp(min=0)
        error = x - (z @ decoder + offset)
        alive = (z > 0).any(0)
        dead = h.detach().masked_fill(alive, -np.inf)
        dead_z = torch.zeros_like(h).scatter(1, dead.argmax(1, keepdim=True), 1.0) * h.clamp(min=0)
        e = base_error
        aux = (e - dead_z @ decoder).square().mean() / (e - e.mean(0)).square().mean()
        few = min(1.0, float((~alive).sum()) / 1.5)
        return error.square().mean() + few * aux / 32

    h0 = (x - values[3]) @ values[0].T + values[1]
    z0 = torch.zeros_like(h0).scatter(1, h0.argmax(1, keepdim=True), h0.amax(1, keepdim=True)).clamp(min=0)
    base_error = x - (z0 @ values[2] + values[3])
    adapter._loss(x, training).backward()
    gradients = {name: getattr(adapter, name).grad for name in names}
    for position, name in enumerate(names):
        for place in np.ndindex(values[position].shape):
            ends = []
            for sign in (1, -1):
                moved = [v.clone() for v in values]
                moved[position][place] += sign * 1e-6
                ends.append(float(dense(*moved)))
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(gradients[name][place]), abs=1e-6), name


def test_decoder_rows_stay_unit_after_each_step_and_gradients_have_no_radial_part(feature_set, monkeypatch):
    norms, radial = [], []
    constrain, remove = TopKDictionary._constrain, dictionary.remove_parallel

    def watched(self):
        constrain(self)
        norms.append(self.decoder.detach().norm(dim=1))

    def seen(decoder):
        remove(decoder)
        radial.append((decoder.grad * decoder).sum(1).abs().max().item())

    monkeypatch.setattr(TopKDictionary, "_constrain", watched)
    monkeypatch.setattr(dictionary, "remove_parallel", seen)
    rows = TrainingRows(feature_set(gaussian()), None, CPU)
    make("sae-matryoshka", width=30, k=3, steps=7).fit(rows, seed=0)
    assert len(norms) == 7
    torch.testing.assert_close(torch.stack(norms), torch.ones(7, 30))
    assert max(radial) < 1e-5


def test_remove_parallel_keeps_what_is_across():
    decoder = torch.nn.Parameter(torch.tensor([[0.6, 0.8]]))
    decoder.grad = torch.tensor([[0.6, 0.8]]) * 3 + torch.tensor([[-0.8, 0.6]]) * 2
    remove_parallel(decoder)
    torch.testing.assert_close(decoder.grad, torch.tensor([[-1.6, 1.2]]))


def test_a_known_sparse_dictionary_is_recovered(feature_set):
    generator = np.random.default_rng(1)
    atoms = generator.normal(size=(24, 16))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    weights = np.zeros((2000, 24))
    for row in weights:
        row[generator.choice(24, 2, replace=False)] = generator.uniform(1, 2, 2)
    adapter = make(width=48, k=2, steps=1000).fit(TrainingRows(feature_set(weights @ atoms), None, CPU), seed=0)
    cosines = torch.from_numpy(atoms).float() @ adapter.decoder.T
    assert cosines.amax(dim=1).mean() > 0.95
    untrained = make("random-topk", width=48, k=2).fit(
        TrainingRows(feature_set(weights @ atoms), None, CPU), seed=0
    )
    assert (torch.from_numpy(atoms).float() @ untrained.decoder.T).amax(dim=1).mean() < 0.75


def test_explained_variance_is_r2_of_scikit_learn_on_training_rows_only(feature_set):
    data, rows = gaussian(300), np.arange(0, 300, 2)
    adapter = make(width=40, k=4, steps=60).fit(TrainingRows(feature_set(data), rows, CPU), seed=0)
    x = torch.from_numpy(data[rows]).float()
    rebuilt = adapter.decode(adapter.encode(x))
    expected = r2_score(x.double().numpy(), rebuilt.double().numpy(), multioutput="variance_weighted")
    assert adapter.report()["explained_variance"] == pytest.approx(expected, abs=1e-6)
    assert adapter.report()["explained_variance"] > adapter.report()["explained_variance_untrained"] + 0.1


def test_the_untrained_twin_is_the_trained_one_at_its_start(feature_set):
    features = feature_set(gaussian())
    twin = make("random-topk", width=40, k=5).fit(TrainingRows(features, None, CPU), seed=3)
    start = make(width=40, k=5, steps=0).fit(TrainingRows(features, None, CPU), seed=3)
    trained = make(width=40, k=5, steps=20).fit(TrainingRows(features, None, CPU), seed=3)
    assert torch.equal(twin.encoder, start.encoder)
    gain = twin.encoder[0, 0] / twin.decoder[0, 0]
    torch.testing.assert_close(twin.encoder, gain * twin.decoder)
    for other in (0.9, 1.1):  # the gain is the best there is
        worse = make("random-topk", width=40, k=5).restore({**twin.state(), "encoder": twin.encoder * other})
        rows = TrainingRows(features, None, CPU)
        assert worse._measure(rows, worse.encode)["explained_variance"] < twin.report()["explained_variance"]
    assert twin.report()["explained_variance"] == trained.report()["explained_variance_untrained"]
    assert not torch.equal(twin.encoder, trained.encoder)
    codes = Codes(features, twin, CPU).dense()
    assert ((codes != 0).sum(1) == 5).all()
    assert twin.report()["l0"] == 5


def test_scale_and_centre_do_not_change_the_codes(feature_set):
    """The features' offset and unit are taken out before training, so only rounding is left of them."""
    data = gaussian(100, 6).astype(np.float32)
    first = make(width=20, k=3, steps=5).fit(TrainingRows(feature_set(data, "a"), None, CPU), seed=0)
    second = make(width=20, k=3, steps=5).fit(TrainingRows(feature_set(data * 64 - 128, "b"), None, CPU), seed=0)
    x = torch.from_numpy(data)
    torch.testing.assert_close(first.encode(x).dense(), second.encode(x * 64 - 128).dense(), atol=1e-3, rtol=1e-3)


def test_dead_latents_learn_what_was_missed():
    """With the error held fixed, descending AuxK alone makes the dead latents explain most of it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    error = 0.3 * x[:, :2] @ torch.randn(2, 8, generator=generator)
    encoder = (0.1 * torch.randn(20, 8, generator=generator)).requires_grad_()
    decoder = (0.3 * torch.randn(20, 8, generator=generator)).requires_grad_()
    dead = torch.arange(6, 20)
    optimiser = torch.optim.Adam([encoder, decoder], lr=0.02)
    losses = []
    for _ in range(200):
        loss = aux_k(x @ encoder.T, error, decoder, dead)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.5 < losses[0]


def test_rows_larger_than_memory_are_read_from_disk_with_the_same_result(feature_set, monkeypatch):
    features, rows = feature_set(gaussian()), np.arange(150)[::-1].copy()
    inside = make(width=20, k=3, steps=8).fit(TrainingRows(features, rows, CPU), seed=0)
    monkeypatch.setattr("monoeval.adapters.rows.IN_MEMORY_BYTES", 0)
    outside = make(width=20, k=3, steps=8).fit(TrainingRows(features, rows, CPU), seed=0)
    assert all(torch.equal(value, outside.state()[name]) for name, value in inside.state().items())


def test_the_seed_decides_everything_and_the_global_generator_nothing(feature_set):
    features = feature_set(gaussian())
    torch.manual_seed(1)
    first = make(width=20, k=3, steps=8).fit(TrainingRows(features, None, CPU), seed=0).state()
    torch.manual_seed(2)
    second = make(width=20, k=3, steps=8).fit(TrainingRows(features, None, CPU), seed=0).state()
    other = make(width=20, k=3, steps=8).fit(TrainingRows(features, None, CPU), seed=1).state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["encoder"], other["encoder"])


def test_defaults_grow_with_the_data():
    settings = TrainedDictionarySettings()
    small, large = Schedule.of(settings, 1_200, 1024), Schedule.of(settings, 1_300_000, 8192)
    assert small == Schedule(600, 128, 4e-3)
    assert [Schedule.of(settings, rows, 1024).steps for rows in (40, 5_000, 150_000)] == [300, 1500, 1500]
    assert large.batch_size == 4096
    assert large.steps * large.batch_size >= 10 * 1_300_000
    assert large.learning_rate < small.learning_rate
    assert Schedule.of(settings, 40, 64).batch_size == 40
    rates = [small.rate(step) for step in range(small.steps)]
    assert max(rates) == small.learning_rate
    assert rates[0] < 0.1 * max(rates)
    assert 0 < rates[-1] < 0.01 * max(rates)


def test_size_follows_the_features_unless_given(feature_set):
    features = feature_set(gaussian(50, 10))
    default = make("random-topk").fit(TrainingRows(features, None, CPU), seed=0)
    assert (default.width, default.k) == (80, 20)
    wide = make("random-topk", width=500).fit(TrainingRows(features, None, CPU), seed=0)
    assert (wide.width, wide.k) == (500, 32)
    with pytest.raises(UsageError, match=r"width_factor 0.01 of .* features is not one latent: give a larger one"):
        make("random-topk", width_factor=0.01).fit(TrainingRows(features, None, CPU), seed=0)
    narrow = make("random-topk", width_factor=0.2, k=2).fit(TrainingRows(features, None, CPU), seed=0)
    assert (narrow.width, narrow.k) == (2, 2)


def test_features_that_cannot_be_fitted_are_one_sentence(feature_set):
    data = gaussian(30, 5)
    with pytest.raises(UsageError, match="k is 50 and the dictionary has 40 latents"):
        make(k=50).fit(TrainingRows(feature_set(data), None, CPU), seed=0)
    broken = data.copy()
    broken[[2, 7, 20], 1] = [np.nan, np.inf, -np.inf]
    with pytest.raises(MonoevalError, match="3 of 30 training rows have features that are not finite"):
        make().fit(TrainingRows(feature_set(broken), None, CPU), seed=0)
    make(steps=1).fit(TrainingRows(feature_set(broken), np.array([0, 1, 3]), CPU), seed=0)
    with pytest.raises(MonoevalError, match="All 5 features are constant over the 30 training rows"):
        make().fit(TrainingRows(feature_set(np.full((30, 5), 0.1)), None, CPU), seed=0)
    with pytest.raises(MonoevalError, match="at least one training row"):
        make().fit(TrainingRows(feature_set(data), np.array([], dtype=np.int64), CPU), seed=0)


def test_moments_are_those_of_numpy(feature_set, caplog):
    data = gaussian(9000, 3).astype(np.float32)
    data[:, 1] = 0.1
    with caplog.at_level(logging.WARNING, "monoeval"):
        rows = TrainingRows(feature_set(data), None, CPU)
        np.testing.assert_allclose(rows.mean, data.astype(np.float64).mean(0), rtol=1e-9)
        np.testing.assert_allclose(rows.variance[[0, 2]], data.astype(np.float64).var(0)[[0, 2]], rtol=1e-6)
    assert rows.variance[1] == 0


def test_aux_k_without_spread_has_no_gradient_rather_than_nan():
    h = torch.randn(1, 6, requires_grad=True)
    loss = aux_k(h, torch.ones(1, 4), torch.eye(6, 4), torch.arange(3))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(h.grad).all()
