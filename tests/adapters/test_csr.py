"""Contrastive sparse representation: its loss written out densely, and what the contrastive term changes."""

import numpy as np
import pytest
import torch

from monoeval.adapters.base import SparseRows
from monoeval.adapters.csr import CSR
from monoeval.adapters.registry import build, controls_for
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.errors import MonoevalError, UsageError

CPU = torch.device("cpu")


def make(**params):
    return build(AdapterSpec(method="csr", params={"width": 40, "k": 4, "n_views": 2, "steps": 100, **params}))


def planted(images: int = 200, views: int = 3) -> list[np.ndarray]:
    """Images made of two of 24 atoms each, and views of them: [images, views...], float32."""
    draws = np.random.default_rng(0)
    atoms = draws.normal(size=(24, 12))
    weights = np.zeros((images, 24))
    for row in weights:
        row[draws.choice(24, 2, replace=False)] = draws.uniform(1, 2, 2)
    own = weights @ atoms + 3
    noise = 0.8 * draws.normal(size=(views, *own.shape))
    return [own.astype(np.float32), *(own + noise).astype(np.float32)]


def training_rows(feature_set, arrays, rows=None) -> TrainingRows:
    first, *views = arrays
    return TrainingRows(
        feature_set(first), rows, CPU, [feature_set(v, f"view{number}") for number, v in enumerate(views)]
    )


def written_out(x, encoder, decoder, k, weight) -> float:
    """mean (x − x̂_k)² + ⅛ mean (x − x̂_4k)² + weight · InfoNCE of the k-codes at τ = 0.5, by loops."""

    def codes(count: int) -> np.ndarray:
        z = np.zeros((len(x), len(encoder)))
        for row, values in zip(z, x @ encoder.T, strict=True):
            for latent in np.argsort(-values)[:count]:
                row[latent] = max(values[latent], 0)
        return z

    z = codes(k)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    half, contrast = len(x) // 2, 0.0
    for i in range(2 * half):
        others = [np.exp(unit[i] @ unit[j] / 0.5) for j in range(2 * half) if j != i]
        positive = np.exp(unit[i] @ unit[(i + half) % (2 * half)] / 0.5)
        contrast -= np.log(positive / sum(others)) / (2 * half)
    errors = [np.square(x - codes(count) @ decoder).mean() for count in (k, min(4 * k, len(encoder)))]
    return float(errors[0] + errors[1] / 8 + weight * contrast)


@pytest.mark.parametrize("width", [11, 6])
def test_the_loss_and_its_gradient_are_those_written_out(width):
    """Width 6 is less than 4k = 8: there the wider reconstruction takes all latents."""
    draws = np.random.default_rng(3)
    x, encoder, decoder = draws.normal(size=(6, 4)), draws.normal(size=(width, 4)), draws.normal(size=(width, 4))
    adapter = make(width=width, k=2, temperature=0.5, contrast_weight=0.7)
    adapter.width, adapter.k = width, 2
    adapter.encoder = torch.from_numpy(encoder).requires_grad_()
    adapter.decoder = torch.from_numpy(decoder).requires_grad_()
    adapter.encoder_bias = torch.zeros(width, dtype=torch.float64)
    adapter.decoder_bias = torch.zeros(4, dtype=torch.float64)
    rows = torch.from_numpy(x)
    h = adapter.pre_activations(rows)
    codes = adapter.top_k(h)
    assert (codes.values > 0).any(dim=1).all()
    loss = adapter._missed(rows, h, codes, rows - adapter.reconstruct(codes))
    assert loss.item() == pytest.approx(written_out(x, encoder, decoder, 2, 0.7))
    loss.backward()
    for matrix, gradient in ((encoder, adapter.encoder.grad), (decoder, adapter.decoder.grad)):
        for place in np.ndindex(matrix.shape):
            ends, kept = [], matrix[place]
            for end in (1e-6, -1e-6):
                matrix[place] = kept + end
                ends.append(written_out(x, encoder, decoder, 2, 0.7))
            matrix[place] = kept
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient[place].item(), abs=1e-6)


def test_a_batch_is_images_as_they_are_and_in_one_view_each_at_the_cost_of_sae(feature_set, monkeypatch):
    arrays, seen = planted(images=60), []
    missed = CSR._missed
    monkeypatch.setattr(CSR, "_missed", lambda self, x, *rest: seen.append(x) or missed(self, x, *rest))
    adapter = make(steps=12, batch_size=16).fit(training_rows(feature_set, arrays), seed=0)
    tables = [adapter.scaled(torch.from_numpy(array)) for array in arrays]
    used = set()
    for x in seen:
        assert len(x) == 16
        own, view = x.chunk(2)
        at = torch.cdist(own, tables[0]).argmin(dim=1)
        torch.testing.assert_close(own, tables[0][at])
        used |= {number for number in (1, 2, 3) if torch.allclose(view, tables[number][at], atol=1e-5)}
    assert len(seen) == 12
    assert used == {1, 2}


def test_a_latent_is_dead_after_as_many_passes_over_the_images_as_is_said(feature_set, monkeypatch):
    """Each step shows 8 of 40 images twice, and what has not fired is taught from step 10 on."""
    taught = []
    rows = training_rows(feature_set, planted(images=40))
    monkeypatch.setattr("monoeval.adapters.sae.aux_k", lambda h, *_: taught.append(1) or 0 * h.sum())
    monkeypatch.setattr(
        CSR, "top_k", lambda _, h: SparseRows(h[:, :4].relu(), torch.arange(4).expand(len(h), 4), 40)
    )
    make(steps=16, batch_size=16, dead_epochs=2.0).fit(rows, seed=0)
    assert len(taught) == 16 - 9


def test_the_contrastive_term_pulls_together_views_that_it_never_saw(feature_set):
    arrays = planted()
    rows = training_rows(feature_set, arrays)
    margins = {}
    for weight in (0.0, 0.1):
        adapter = make(contrast_weight=weight, steps=300).fit(rows, seed=0)
        one, two = (adapter.encode(torch.from_numpy(arrays[view])).dense() for view in (0, 3))
        cosines = torch.nn.functional.normalize(one) @ torch.nn.functional.normalize(two).T
        same, size = cosines.trace(), len(cosines)
        margins[weight] = float(same / size - (cosines.sum() - same) / (size * size - size))
        assert adapter.report()["explained_variance"] > adapter.report()["explained_variance_untrained"] + 0.2
    assert margins[0.1] > margins[0.0] + 0.02


def test_codes_have_k_places_and_the_seed_decides_them(feature_set):
    arrays = planted(images=50)
    x = torch.from_numpy(arrays[0])
    rows = training_rows(feature_set, arrays)
    first, again, other = (make(steps=10).fit(rows, seed=seed) for seed in (0, 0, 1))
    assert first.encode(x).values.shape == (50, 4)
    assert torch.equal(first.encode(x).dense(), again.encode(x).dense())
    assert not torch.equal(first.encode(x).dense(), other.encode(x).dense())


def test_what_cannot_be_fitted_is_one_sentence(feature_set):
    arrays = planted(images=12)
    with pytest.raises(UsageError, match=r"csr learns from 2 augmented views .* was given 1"):
        make().fit(training_rows(feature_set, arrays[:2]), seed=0)
    with pytest.raises(UsageError, match="csr tells images apart: give it two training rows or more, not 1"):
        make(width=4, k=1).fit(training_rows(feature_set, arrays, rows=np.array([3])), seed=0)
    arrays[2][[0, 5], 1] = np.inf
    with pytest.raises(MonoevalError, match="2 of 12 training rows have features that are not finite"):
        make().fit(training_rows(feature_set, arrays), seed=0)
    with pytest.raises(UsageError, match="n_views cannot be 0"):
        make(n_views=0)


@pytest.mark.parametrize(
    ("params", "size", "of_views"),
    [
        ({"width": 64, "k": 5, "n_views": 3}, {"width": 64, "k": 5}, {"width": 64, "n_views": 3}),
        ({"width_factor": 2.0, "temperature": 0.1, "steps": 9}, {"width_factor": 2.0},
         {"width_factor": 2.0, "temperature": 0.1}),
        ({"k": (2, 4)}, {"k": (2, 4)}, {"width_factor": 8.0}),
    ],
)  # fmt: skip
def test_controls_have_its_width_and_its_sparsity_or_its_views(params, size, of_views):
    assert controls_for(AdapterSpec(method="csr", params=params)) == [
        AdapterSpec(method="random-topk", params=size),
        AdapterSpec(method="cl-head", params=of_views),
        AdapterSpec(method="relu"),
    ]
