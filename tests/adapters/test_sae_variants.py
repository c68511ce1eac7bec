"""The relatives of the TopK autoencoder and its controls, against closed forms, numpy and worked numbers."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import r2_score

from monoeval.adapters.base import Codes, SparseRows
from monoeval.adapters.dictionary import Schedule, Training
from monoeval.adapters.registry import METHODS, build, controls_for
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.sae import TopKSAE
from monoeval.adapters.sae_archetypal import centroids
from monoeval.adapters.sae_penalised import gate_loss, jump
from monoeval.adapters.settings import DictionarySettings, ScheduleSettings
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import fit_cached, load, save
from monoeval.adapters.topk import BETAS
from monoeval.adapters.variable_l0 import kth_largest, packed
from monoeval.cli.options import method_specs
from monoeval.errors import MonoevalError, UsageError
from monoeval.probes.codes import TrainingCodes

CPU = torch.device("cpu")
OURS = (
    "sae", "sae-batchtopk", "sae-matryoshka", "sae-archetypal", "sae-jumprelu", "sae-l1", "sae-gated",
    "random-topk", "frozen-decoder", "frozen-encoder", "dense-ae",
)  # fmt: skip
TRAINED = [name for name in OURS if issubclass(METHODS[name].settings, ScheduleSettings)]
VARIABLE = ("sae-batchtopk", "sae-jumprelu", "sae-l1", "sae-gated")
SIZE = {"width": 40, "k": 5}


def make(method, **params):
    return build(AdapterSpec(method=method, params=params))


def made(rows=400, width=10, seed=0):
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(rows, width)) ** 3 @ generator.normal(size=(width, width))
    return (mixed + 5).astype(np.float32)


def combined(rows=2000, seed=3):
    """Rows in 16 dimensions of three atoms out of 30 on average."""
    generator = np.random.default_rng(seed)
    atoms = np.random.default_rng(3).normal(size=(30, 16))
    used = generator.random((rows, 30)) < 0.1
    return (np.where(used, generator.uniform(1, 2, (rows, 30)), 0) @ atoms).astype(np.float32)


def size_of(method):
    return {name: value for name, value in SIZE.items() if name in METHODS[method].settings.model_fields}


def fitted(method, features, rows=None, seed=0, **params):
    steps = {"steps": 12} if method in TRAINED else {}
    return make(method, **{**size_of(method), **steps, **params}).fit(TrainingRows(features, rows, CPU), seed=seed)


def dense(codes):
    return codes.dense() if isinstance(codes, SparseRows) else codes


def started(method, x, **params):
    """An adapter at its start, in float64 and without scaling, ready for one step on x."""
    rows = TrainingRows.__new__(TrainingRows)
    rows.rows, rows.width, rows.device = np.arange(len(x)), x.shape[1], CPU
    rows.__dict__["_whole"] = x.float()
    adapter = make(method, **params)
    adapter._start(rows, 0)
    adapter._prepare(rows)
    for name, value in vars(adapter).items():
        if isinstance(value, torch.Tensor):
            setattr(adapter, name, value.double())
    for name in adapter.trained:
        setattr(adapter, name, torch.nn.Parameter(getattr(adapter, name)))
    return adapter, Training(Schedule(10, len(x), 0.01), len(x), torch.zeros(adapter.width))


@pytest.mark.parametrize("method", OURS)
def test_what_is_saved_gives_identical_codes_reconstructions_and_directions(method, feature_set, tmp_path):
    adapter = fitted(method, feature_set(made()))
    save(adapter, AdapterSpec(method=method, params=size_of(method)), tmp_path / "it", seed=0)
    again, x = load(tmp_path / "it"), torch.from_numpy(made(90, seed=1))
    ours, theirs = adapter.encode(x), again.encode(x)
    assert type(ours) is type(theirs)
    assert torch.equal(dense(ours), dense(theirs))
    assert torch.equal(adapter.decode(ours), again.decode(theirs))
    assert torch.equal(adapter.directions, again.directions)
    assert again.report() == adapter.report()


@pytest.mark.parametrize("method", OURS)
def test_wrong_sizes_and_features_are_one_sentence(method, feature_set):
    params = {"steps": 2} if method in TRAINED else {}
    data = made(30, 5)
    broken = data.copy()
    broken[3, 2] = np.nan
    wrong = [
        (UsageError, data, {"width": 0}, "width cannot be 0"),
        (MonoevalError, broken, {"width": 40}, "1 of 30 training rows have features that are not finite"),
        (MonoevalError, np.full_like(data, 0.1), {}, "All 5 features are constant over the 30 training rows"),
    ]
    if "k" in size_of(method):
        wrong += [
            (UsageError, data, {"k": 50, "width_factor": 4.0}, "k is 50 and the dictionary has 20 latents"),
            (UsageError, data, {"k": 9, "width": 8}, "k is 9, more than the width of 8"),
        ]
    for number, (error, features, size, words) in enumerate(wrong):
        with pytest.raises(error, match=words) as caught:
            make(method, **params, **size).fit(
                TrainingRows(feature_set(features, f"features-{number}"), None, CPU), seed=0
            )
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", OURS)
def test_measures_are_those_of_the_dense_codes(method, feature_set):
    data, rows = made(), np.arange(0, 400, 2)
    adapter = fitted(method, feature_set(data), rows)
    x = torch.from_numpy(data[rows])
    codes = adapter.encode(x)
    active = dense(codes).numpy() > 0
    report = adapter.report()
    rebuilt = dense(codes).double() @ adapter.directions.double()
    rebuilt += (adapter.decoder_bias * adapter.scale + adapter.mean).double()  # what no latent adds
    expected = r2_score(data[rows].astype(np.float64), rebuilt.numpy(), multioutput="variance_weighted")
    assert report["explained_variance"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert report["l0"] == pytest.approx(active.sum(1).mean())
    assert report["l0_max"] == active.sum(1).max()
    assert report["dead_share"] == pytest.approx(1 - active.any(0).mean(), abs=1e-6)


@pytest.mark.parametrize("method", TRAINED)
def test_training_lowers_the_loss_and_moves_what_it_should(method, feature_set):
    features = feature_set(made())
    start, end = fitted(method, features, steps=0), fitted(method, features, steps=100)
    assert end.report()["explained_variance"] > start.report()["explained_variance"]
    moved = {
        name for name, value in start.state().items()
        if value.is_floating_point() and not torch.equal(value, end.state()[name])
    }  # fmt: skip
    learned = {"encoder", "encoder_bias", "decoder", "decoder_bias"}
    stays = {"frozen-encoder": {"encoder", "encoder_bias"}, "frozen-decoder": {"decoder"}}.get(method, set())
    own = {
        "sae-batchtopk": {"threshold"}, "sae-jumprelu": {"log_threshold"}, "sae-archetypal": {"logits", "slack"},
        "sae-gated": {"log_gain", "magnitude_bias"},
    }.get(method, set())  # fmt: skip
    assert moved == (learned - stays) | own


@pytest.mark.parametrize("method", [m for m in OURS if m not in ("sae-archetypal",)])
def test_decoder_rows_have_length_one(method, feature_set):
    lengths = fitted(method, feature_set(made())).decoder.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(40))


@pytest.mark.parametrize("method", TRAINED)
def test_the_seed_decides_everything(method, feature_set):
    features = feature_set(made(100))
    torch.manual_seed(1)
    one = fitted(method, features).state()
    torch.manual_seed(2)
    two = fitted(method, features).state()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["encoder_bias"], fitted(method, features, seed=1).state()["encoder_bias"]) or (
        method == "frozen-encoder"
    )


@given(st.lists(st.integers(-30, 200), min_size=1, max_size=60), st.integers(1, 70), st.integers(1, 7))
@settings(deadline=None, max_examples=60)
def test_the_kth_largest_of_positive_numbers_is_that_of_sorting(numbers, rank, size):
    values = torch.tensor(numbers, dtype=torch.float32) / 7
    positive = sorted((v for v in values.tolist() if v > 0), reverse=True)
    expected = positive[rank - 1] if rank <= len(positive) else 0.0
    assert kth_largest(lambda: iter(values.split(size)), rank) == expected


def test_the_kth_largest_is_exact_to_the_last_bit():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * 1e-3 + 1
    ranked = values.sort(descending=True).values
    for rank in (1, 2, 777, 20_000):
        assert kth_largest(lambda: iter(values.split(3000)), rank) == float(ranked[rank - 1])


def test_packed_rows_are_the_matrix_they_came_from():
    matrix = torch.tensor([[0.0, 2.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0], [1.0, 4.0, 5.0, 0.0]])
    rows, columns = matrix.nonzero(as_tuple=True)
    sparse = packed(rows, columns, matrix[rows, columns], matrix.shape)
    assert sparse.values.tolist() == [[2, 3, 0], [0, 0, 0], [1, 4, 5]]
    assert torch.equal(sparse.dense(), matrix)
    assert packed(rows, columns, matrix[rows, columns], matrix.shape, 8).values.shape == (3, 8)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert packed(nothing, nothing, torch.zeros(0), torch.Size((0, 4)), 2).values.shape == (0, 2)


@pytest.mark.parametrize(("width", "k", "rows"), [(40, 5, 400), (64, 1, 333), (300, 7, 1000)])
def test_batchtopk_is_calibrated_to_k_on_the_training_rows(width, k, rows, feature_set):
    features = feature_set(made(rows))
    adapter = fitted("sae-batchtopk", features, width=width, k=k, steps=20)
    codes = Codes(features, adapter, CPU).dense()
    assert float((codes > 0).sum(1).float().mean()) == pytest.approx(k, rel=0.005)
    h = adapter.pre_activations(adapter.scaled(torch.from_numpy(made(rows)))).detach().relu().numpy().ravel()
    assert float(adapter.threshold) == pytest.approx(np.sort(h)[-(k * rows + 1)], rel=1e-5)
    assert float(adapter.threshold) <= np.quantile(h, 1 - k / width) + 1e-6
    assert adapter.report()["l0"] == pytest.approx(k, rel=0.005)


def test_batchtopk_in_training_keeps_the_largest_of_the_batch_and_its_gradient():
    adapter = make("sae-batchtopk")
    adapter.k, adapter.width = 1, 3
    h = torch.tensor([[3.0, 2.5, -1.0], [0.5, -2.0, 0.1]], requires_grad=True)
    codes = adapter.select(h)
    assert codes.dense().tolist() == [[3.0, 2.5, 0.0], [0.0, 0.0, 0.0]]
    (codes.dense() * torch.arange(1.0, 7.0).reshape(2, 3)).sum().backward()
    assert h.grad.tolist() == [[1, 2, 0], [0, 0, 0]]
    few = adapter.select(torch.tensor([[-3.0, 2.0, -1.0], [-0.5, -2.0, -0.1]]))
    assert few.dense().tolist() == [[0, 2, 0], [0, 0, 0]]


def test_batchtopk_with_too_few_positive_latents_warns_and_keeps_them_all(feature_set, caplog):
    features = feature_set(made(100))
    with caplog.at_level(logging.WARNING, "monoeval"):
        adapter = fitted("sae-batchtopk", features, width=20, k=20, steps=1)
    assert "Fewer than k = 20 of 20 latents are positive" in caplog.text
    assert float(adapter.threshold) == 0
    h = adapter.pre_activations(adapter.scaled(torch.from_numpy(made(100))))
    torch.testing.assert_close(dense(adapter.encode(torch.from_numpy(made(100)))), h.relu())


@pytest.mark.parametrize("method", VARIABLE)
def test_rows_of_variable_l0_are_sparse_where_that_saves_and_probes_can_hold_them(method, feature_set):
    data = combined(9000)
    features = feature_set(data)
    narrow = fitted(method, features, width=24, k=4)
    assert isinstance(narrow.encode(torch.from_numpy(data[:5])), torch.Tensor)
    wide = fitted(method, features, width=160, k=4, steps=10)
    codes = wide.encode(torch.from_numpy(data[:5]))
    assert isinstance(codes, SparseRows)
    assert wide.report()["l0_max"] < codes.values.shape[1] <= 40
    held = TrainingCodes.of(Codes(features, wide, CPU))  # three chunks, which have to be equally wide
    assert held.sparse
    z = wide.active(wide.pre_activations(wide.scaled(torch.from_numpy(data))))
    torch.testing.assert_close(held.whole() * held.scale, z)


def test_a_row_fuller_than_any_training_row_loses_nothing(feature_set):
    adapter = fitted("sae-batchtopk", feature_set(combined(500)), width=160, k=4)
    x = torch.from_numpy(combined(5) * 40)
    codes = adapter.encode(x)
    z = adapter.active(adapter.pre_activations(adapter.scaled(x)))
    assert isinstance(codes, SparseRows)
    assert int((z > 0).sum(1).max()) > adapter.places
    assert torch.equal(codes.dense(), z)


@pytest.mark.parametrize("method", ["sae-jumprelu", "sae-l1", "sae-gated"])
def test_penalties_end_near_k_active_latents(method, feature_set, caplog):
    features = TrainingRows(feature_set(combined()), None, CPU)
    with caplog.at_level(logging.WARNING, "monoeval"):
        adapter = make(method, width=60, k=4, steps=400, batch_size=64).fit(features, seed=0)
    assert adapter.report()["l0"] == pytest.approx(4, rel=0.1)
    assert not caplog.text
    assert adapter.report()["explained_variance"] > adapter.report()["explained_variance_untrained"]


def test_an_l0_far_from_k_is_said(feature_set, caplog):
    with caplog.at_level(logging.WARNING, "monoeval"):
        adapter = fitted("sae-l1", feature_set(made()), steps=3, learning_rate=1.0)
    assert abs(adapter.report()["l0"] - 5) > 0.5
    assert f"sae-l1 has {adapter.report()['l0']:.1f} active latents a training row, not the 5" in caplog.text


def test_jump_by_hand():
    """θ = 1, ε = 0.5, so |h − θ| < 0.25: of h = 0.5, 0.8, 1.2, 3 the middle two lie in the window.

    With z weighted by 1, 10, 100, 1000, ∂/∂θ = −(θ/ε)(10 + 100) = −220, and ∂L0/∂θ = −(1/ε)·2 = −4 for one row.
    """
    h = torch.tensor([[0.5, 0.8, 1.2, 3.0]], dtype=torch.float64, requires_grad=True)
    theta = torch.ones(4, dtype=torch.float64, requires_grad=True)
    z, l0 = jump(h, theta, 0.5)
    assert z.tolist() == [[0, 0, 1.2, 3]]
    assert l0.item() == 2
    by_z = torch.autograd.grad((z * torch.tensor([1, 10, 100, 1000])).sum(), (h, theta), retain_graph=True)
    assert by_z[0].tolist() == [[0, 0, 100, 1000]]
    assert by_z[1].tolist() == [0, -20, -200, 0]
    by_l0 = torch.autograd.grad(l0, (h, theta), allow_unused=True)
    assert by_l0[0] is None
    assert by_l0[1].tolist() == [0, -2, -2, 0]


def test_the_threshold_gradient_of_jumprelu_is_the_stated_formula():
    """Through the whole loss: Σ_i ∂L/∂z_ij ∂z_ij/∂θ_j + 2λ (L0/k − 1)/k · ∂L0/∂θ_j, and θ for log θ."""
    torch.manual_seed(0)
    x = torch.randn(50, 4, dtype=torch.float64)
    adapter, training = started("sae-jumprelu", x, width=9, k=3, bandwidth=0.6, sparsity_weight=5.0)
    with torch.no_grad():
        adapter.log_threshold += torch.linspace(-0.5, 0.5, 9)
    training.step = 2  # of 10 steps: three fifths warm
    x = adapter.scaled(x)
    adapter._loss(x, training).backward()
    with torch.no_grad():
        theta = adapter.log_threshold.exp()
        h = adapter.pre_activations(x)
        z = torch.where(h > theta, h, 0)
        by_z = -2 / x.numel() * (x - adapter.reconstruct(z)) @ adapter.decoder.T
        window = ((h - theta).abs() < 0.3).double() / 0.6
        l0 = (z > 0).sum() / 50
        expected = -(by_z * window).sum(0) * theta - 5 * 0.6 * 2 * (l0 / 3 - 1) / 3 * window.sum(0) / 50
    torch.testing.assert_close(adapter.log_threshold.grad, expected * theta)
    assert (expected != 0).sum() > 5


def test_the_l1_loss_and_its_gradients():
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64)
    adapter, training = started("sae-l1", x, width=5, k=2)
    x, weight = adapter.scaled(x), float(adapter.coefficient)
    adapter.k = 1  # fewer than are active
    with torch.no_grad():
        adapter.decoder *= torch.tensor([0.5, 1, 2, 3, 0.1])[:, None]
    loss = adapter._loss(x, training)
    loss.backward()
    z = torch.relu((x - adapter.decoder_bias) @ adapter.encoder.T + adapter.encoder_bias)
    penalty = sum(float((z[i, j] * adapter.decoder[j].norm()).detach()) for i in range(6) for j in range(5)) / 6
    missed = (x - z @ adapter.decoder - adapter.decoder_bias).square().mean()
    assert loss.item() == pytest.approx(missed.item() + weight * penalty)
    radial = (adapter.decoder.grad * adapter.decoder).sum(1)
    assert radial.abs().min() > 1e-4  # lengths are free to change
    assert float(adapter.coefficient) > weight


def test_l1_moves_lengths_into_the_codes_and_leaves_the_reconstruction(feature_set):
    x = torch.from_numpy(made())
    adapter = make("sae-l1", **SIZE)
    adapter._start(TrainingRows(feature_set(made()), None, CPU), 0)
    adapter.decoder = adapter.decoder * torch.rand(40, 1) * 3
    adapter.decoder[7] = 0
    before = adapter.decode(adapter.encode(x))
    lengths, codes = adapter.decoder.norm(dim=1), adapter.encode(x)
    adapter._finish(None)
    torch.testing.assert_close(adapter.decode(adapter.encode(x)), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapter.encode(x), codes * lengths, rtol=1e-4, atol=1e-5)


def test_steering_by_hand():
    """A rate of 0.01 and L0 = 4 where k = 2: log λ moves by 0.12 log 2; L0 = 0 moves it by −0.12."""
    adapter = make("sae-l1", **SIZE)
    adapter.k, adapter.coefficient = 2, torch.tensor(3.0)
    training = Training(Schedule(100, 1, 0.01), 1, torch.zeros(1))
    adapter._steer(torch.ones(5, 4), training)
    assert adapter.coefficient.item() == pytest.approx(3 * 2**0.12)
    adapter._steer(torch.zeros(5, 4), training)
    assert adapter.coefficient.item() == pytest.approx(3 * 2**0.12 * np.exp(-0.12))


def test_gated_by_hand():
    """u = (2, −1), b_gate = (−1, 2): π = (1, 1), both open; r = (log 3, 0), b_mag = (1, 0.5): 3·2 + 1 = 7, and
    −1 + 0.5 rectified to 0. With x̂ = 7·(1, 0), and (1, 1) from the gates."""
    adapter = make("sae-gated", **SIZE)
    adapter.encoder = adapter.decoder = torch.eye(2)
    adapter.encoder_bias, adapter.decoder_bias = torch.tensor([-1.0, 2.0]), torch.zeros(2)
    adapter.log_gain, adapter.magnitude_bias = torch.tensor([3.0, 1.0]).log(), torch.tensor([1.0, 0.5])
    x = torch.tensor([[2.0, -1.0]])
    h = adapter.pre_activations(x)
    assert h.tolist() == [[1, 1]]
    torch.testing.assert_close(adapter.active(h), torch.tensor([[7.0, 0.0]]))
    assert adapter.active(torch.tensor([[-0.1, 3.0]])).tolist() == [[0, 1.5]]  # a closed gate; u = 1
    adapter.k, adapter.coefficient = 1, torch.tensor(0.1)
    training = Training(Schedule(10, 1, 0.0), 1, torch.zeros(2))
    expected = (25 + 1) / 2 + (1 + 4) / 2 + 0.1 * 2
    assert adapter._loss(x, training).item() == pytest.approx(expected)


def test_the_auxiliary_loss_of_gated_moves_the_gates_and_never_the_decoder():
    torch.manual_seed(0)
    x = torch.randn(20, 4, dtype=torch.float64)
    adapter, _ = started("sae-gated", x, width=7, k=2)
    gate = adapter.pre_activations(x).relu()
    gate_loss(x, gate, adapter.decoder, adapter.decoder_bias).backward()
    assert adapter.decoder.grad is None
    assert adapter.log_gain.grad is None
    assert adapter.magnitude_bias.grad is None
    assert adapter.encoder.grad.abs().sum(1).min() > 0
    assert adapter.encoder_bias.grad.abs().min() > 0
    # b_d only as what the encoder takes from x
    torch.testing.assert_close(adapter.decoder_bias.grad, -adapter.encoder_bias.grad @ adapter.encoder.detach())


def test_matryoshka_prefixes_by_hand():
    """z = (1, 2, 0, 3) on unit axes of R⁴ and x = (1, 2, 0, 5): prefixes of 1, 2 and 4 latents miss 4 + 25, 25
    and 4 of 4 numbers each, with weights of a third."""
    adapter = make("sae-matryoshka", prefixes=3, width=4, k=3)
    adapter.width, adapter.decoder, adapter.decoder_bias = 4, torch.eye(4), torch.zeros(4)
    codes = SparseRows(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[3, 0, 1]]), 4)
    x = torch.tensor([[1.0, 2.0, 0.0, 5.0]])
    assert adapter.prefixes() == [1, 2, 4]
    loss = adapter._missed(x, x, codes, x - adapter.reconstruct(codes))
    assert loss.item() == pytest.approx((29 / 4 + 25 / 4 + 4 / 4) / 3)


@given(st.integers(1, 3000), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_matryoshka_weights_sum_to_one(width, count):
    """Codes that are zero are missed alike by every prefix, so the loss is the plain one whatever the prefixes."""
    adapter = make("sae-matryoshka", prefixes=count)
    adapter.width, adapter.decoder, adapter.decoder_bias = width, torch.ones(width, 2), torch.zeros(2)
    prefixes = adapter.prefixes()
    assert prefixes == sorted(set(prefixes))
    assert prefixes[-1] == width
    x = torch.tensor([[1.0, 3.0]])
    codes = SparseRows(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), width)
    assert adapter._missed(x, x, codes, x).item() == pytest.approx(5.0)


def test_matryoshka_puts_more_into_its_first_latents(feature_set):
    data = made(600, 16)
    x = torch.from_numpy(data)
    explained = {}
    for method in ("sae", "sae-matryoshka"):
        adapter = fitted(method, feature_set(data, method), width=32, k=6, steps=400)
        z = dense(adapter.encode(x))
        z[:, 8:] = 0
        missed = (x - adapter.decode(z)).square().sum() / (x - x.mean(0)).square().sum()
        explained[method] = 1 - float(missed)
    assert explained["sae-matryoshka"] > explained["sae"] + 0.1


@pytest.mark.parametrize("relaxation", [0.0, 0.05])
def test_archetypes_lie_within_the_relaxed_hull(relaxation, feature_set):
    data = made(300, 6)
    adapter = fitted("sae-archetypal", feature_set(data), candidates=50, relaxation=relaxation, steps=100)
    assert adapter.candidates.shape == (50, 6)
    weights = adapter.weights
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(40))
    away = (adapter.decoder - weights @ adapter.candidates).norm(dim=1)
    assert away.max() <= relaxation + 1e-6
    assert away.max() >= 0.9 * relaxation  # the bound is reached, so it is what holds the slack
    # no direction reaches beyond the training rows by more than the bound; a row's mean square is 6 numbers of 1
    axes = torch.nn.functional.normalize(torch.randn(6, 200, generator=torch.Generator().manual_seed(0)), dim=0)
    reach = (adapter.scaled(torch.from_numpy(data)) / np.sqrt(6) @ axes).amax(0)
    assert ((adapter.decoder @ axes).amax(0) <= reach + relaxation + 1e-5).all()


def test_archetypal_candidates_are_those_of_k_means(feature_set):
    data = made(500, 4)
    first = torch.from_numpy(data[:12])
    ours = centroids(TrainingRows(feature_set(data), None, CPU), first, 300)
    theirs = KMeans(12, init=data[:12], n_init=1, max_iter=300, tol=0).fit(data).cluster_centers_
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_centre_without_rows_stays(feature_set):
    centres = torch.tensor([[0.0], [100.0]])
    rows = TrainingRows(feature_set(np.array([[1.0], [2.0], [3.0]])), None, CPU)
    assert centroids(rows, centres, 3).tolist() == [[2], [100]]


def test_more_candidates_than_rows_are_the_rows(feature_set):
    adapter = fitted("sae-archetypal", feature_set(made(25)), candidates=99)
    assert len(adapter.candidates) == 25


def test_a_frozen_encoder_has_the_codes_of_the_untrained_twin(feature_set):
    features, x = feature_set(made()), torch.from_numpy(made())
    frozen, twin = fitted("frozen-encoder", features, steps=50), fitted("random-topk", features)
    torch.testing.assert_close(frozen.encode(x).dense(), twin.encode(x).dense())
    assert frozen.report()["explained_variance"] > twin.report()["explained_variance"]
    assert not torch.equal(frozen.decoder, twin.decoder)


def test_a_dense_autoencoder_has_no_zeros_but_those_of_relu(feature_set):
    adapter = fitted("dense-ae", feature_set(made()), steps=200)
    x = torch.from_numpy(made())
    h = (adapter.scaled(x) - adapter.decoder_bias) @ adapter.encoder.T + adapter.encoder_bias
    torch.testing.assert_close(adapter.encode(x), h.relu(), rtol=1e-4, atol=1e-4)
    assert adapter.report()["explained_variance"] > 0.9


def test_a_dense_autoencoder_takes_no_k_that_would_do_nothing(feature_set):
    with pytest.raises(UsageError, match="no dense-ae parameter named 'k'"):
        make("dense-ae", width=8, k=9)
    narrow = fitted("dense-ae", feature_set(made()), width=8)
    assert (narrow.width, narrow.report()["k"]) == (8, 8)
    assert method_specs(["sae", "dense-ae"], "4,8", "2") == [
        AdapterSpec(method="sae", params={"k": (4, 8), "width_factor": 2.0}),
        AdapterSpec(method="dense-ae", params={"width_factor": 2.0}),
    ]


@pytest.mark.parametrize("method", ["frozen-decoder", "frozen-encoder", "dense-ae"])
def test_controls_are_trained_by_the_optimiser_of_sae(method, feature_set, monkeypatch):
    made_with, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **k: made_with.append(k.get("betas")) or adam(*a, **k))
    for name in (method, "sae"):
        fitted(name, feature_set(made(60)), steps=1)
    assert set(made_with) == {BETAS}


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("rows", [[2], [0, 2, 3]])
def test_a_row_of_nan_gets_codes_of_nan_and_leaves_the_others_alone(method, rows, feature_set):
    adapter = fitted(method, feature_set(made()))
    x = torch.from_numpy(made(6, seed=1))
    broken = x.clone()
    broken[rows] = np.nan
    ours, theirs = dense(adapter.encode(broken)), dense(adapter.encode(x))
    assert torch.isnan(ours[rows]).any(dim=1).all()
    others = [i for i in range(6) if i not in rows]
    torch.testing.assert_close(ours[others], theirs[others])


@pytest.mark.parametrize("method", TRAINED)
def test_a_diverged_training_is_one_sentence_and_is_not_kept(method, feature_set, tmp_path):
    spec = AdapterSpec(method=method, params={"width": 20, "steps": 30, "learning_rate": 1e30})
    features = feature_set(made(100))
    with pytest.raises(
        MonoevalError, match=f"{method} diverged within 30 steps: set learning_rate lower than"
    ) as told:
        fit_cached(spec, features, None, seed=0, device=CPU)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.glob("cache/adapters/*/*.json"))


def test_a_member_that_diverges_takes_no_other_with_it(feature_set, monkeypatch):
    """Seed 1 alone is broken, whoever asked for it to be trained beside."""
    features, end = feature_set(made(100)), TopKSAE._end

    def ends(self, rows, schedule):
        if self.k == 3:
            self.decoder[0, 0] = np.nan
        end(self, rows, schedule)

    monkeypatch.setattr(TopKSAE, "_end", ends)
    good, bad = (AdapterSpec(method="sae", params={"width": 20, "k": k, "steps": 5}) for k in (2, 3))
    adapter = fit_cached(good, features, None, seed=0, device=CPU, also=[(bad, 0)])
    alone = build(good).fit(TrainingRows(features, None, CPU), seed=0)
    assert torch.equal(adapter.decoder, alone.decoder)
    with pytest.raises(MonoevalError, match="sae diverged"):
        fit_cached(bad, features, None, seed=0, device=CPU, also=[(good, 0)])


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("sae", "learning_rate"), ("sae", "aux_weight"), ("sae", "dead_epochs"), ("sae", "width_factor"),
        ("csr", "temperature"), ("csr", "contrast_weight"), ("sae-archetypal", "relaxation"),
        ("sae-jumprelu", "sparsity_weight"), ("sae-jumprelu", "bandwidth"), ("ncl-head", "temperature"),
        ("ncl-head", "learning_rate"), ("dense-ae", "learning_rate"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_settings_are_finite(method, name, value):
    with pytest.raises(
        UsageError, match=rf"{method}: {name} cannot be (inf|nan) \(input should be a finite number"
    ):
        make(method, **{name: value})


@pytest.mark.parametrize("method", OURS)
def test_each_arm_gets_the_controls_of_its_size(method):
    params = {"width_factor": 4.0, "k": 8}
    if method == "dense-ae":
        del params["k"]  # it has nothing to be sparse by
    controls = controls_for(AdapterSpec(method=method, params=params))
    if METHODS[method].is_control:
        assert controls == []
        assert build(AdapterSpec(method=method, params=params)).size.width_factor == 4  # beside any arm
        return
    as_measured = method in ("sae-jumprelu", "sae-l1", "sae-gated")  # the recipe adds random-topk with their L0
    twins = [] if as_measured else [AdapterSpec(method="random-topk", params=params)]
    assert METHODS[method].emergent == as_measured
    assert controls == [*twins, AdapterSpec(method="relu")]
    assert issubclass(METHODS[method].settings, DictionarySettings)


@pytest.mark.parametrize(
    ("method", "least", "most"),
    [
        ("sae-batchtopk", 0.93, 1), ("sae-matryoshka", 0.93, 1), ("sae-jumprelu", 0.93, 1), ("sae-l1", 0.93, 1),
        ("sae-gated", 0.93, 1), ("sae-archetypal", 0.85, 1), ("frozen-decoder", 0, 0.75),
    ],
)  # fmt: skip
def test_a_known_dictionary_is_recovered_by_those_that_train_their_decoder(method, least, most, feature_set):
    """Mean over 24 atoms of the largest cosine; chance is 0.55 here."""
    generator = np.random.default_rng(1)
    atoms = generator.normal(size=(24, 16))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    weights = np.zeros((2000, 24))
    for row in weights:
        row[generator.choice(24, 2, replace=False)] = generator.uniform(1, 2, 2)
    adapter = fitted(method, feature_set(weights @ atoms), width=48, k=2, steps=500, batch_size=64)
    cosines = torch.from_numpy(atoms).float() @ torch.nn.functional.normalize(adapter.directions, dim=1).T
    assert least <= cosines.amax(dim=1).mean() <= most
