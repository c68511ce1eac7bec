"""Every method behind the one contract, and the closed-form ones against scikit-learn."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler, normalize

from monoeval.adapters import registry
from monoeval.adapters.base import Adapter, Codes, SparseRows
from monoeval.adapters.registry import METHODS, build, controls_for, spec_of
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import fit_cached, load, save
from monoeval.adapters.subset import Subset
from monoeval.errors import MonoevalError, UsageError
from monoeval.metrics.dictionary import explained_variance

CPU = torch.device("cpu")
FITTED = [name for name in METHODS if name != "pretrained"]  # that one needs files: test_foreign
SMALL = {"sae": {"width": 30, "k": 3, "steps": 5}, "random-topk": {"width": 30, "k": 3}, "pca": {"components": 4}}


def data(rows: int = 80, width: int = 6) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (generator.normal(size=(rows, width)) @ generator.normal(size=(width, width)) + 1).astype(np.float32)


def spec(method: str, **params) -> AdapterSpec:
    return AdapterSpec(method=method, params=params or SMALL.get(method, {}))


def fitted(method: str, features, rows=None, **params) -> Adapter:
    wanted = spec(method, **params)
    return build(wanted).fit(TrainingRows(features, rows, CPU, [features] * registry.n_views(wanted)), seed=0)


@pytest.mark.parametrize("method", FITTED)
def test_what_is_saved_and_loaded_gives_identical_codes(method, feature_set, tmp_path):
    features = feature_set(data())
    adapter = fitted(method, features)
    save(adapter, spec(method), tmp_path / "saved", seed=0)
    again = load(tmp_path / "saved")
    assert type(again) is type(adapter)
    assert again.width == adapter.width
    assert again.report() == adapter.report()
    ours, theirs = Codes(features, adapter, CPU), Codes(features, again, CPU)
    assert torch.equal(ours.dense(), theirs.dense())
    assert ours.dense().shape == (80, adapter.width)
    assert adapter.method == method


@pytest.mark.parametrize("method", FITTED)
def test_only_the_training_rows_are_seen(method, feature_set):
    """Rows that are not named could be anything."""
    rows, clean = np.arange(10, 60), data()
    spoilt = clean.copy()
    spoilt[:10], spoilt[60:] = np.nan, 1e4
    x = torch.from_numpy(clean)
    codes = [fitted(method, feature_set(a, name), rows).encode(x) for name, a in (("a", clean), ("b", spoilt))]
    one, two = (c.dense() if isinstance(c, SparseRows) else c for c in codes)
    assert torch.equal(one, two)


def test_standardize_and_pca_agree_with_scikit_learn(feature_set):
    x = data()
    features, rows = feature_set(x), np.arange(50)
    standard = fitted("standardize", features, rows).encode(torch.from_numpy(x))
    np.testing.assert_allclose(standard, StandardScaler().fit(x[rows]).transform(x), atol=1e-4)
    oracle = PCA(4, whiten=True).fit(x[rows].astype(np.float64))
    ours = fitted("pca", features, rows)
    theirs = oracle.transform(x) * np.sqrt(50 / 49)  # scikit-learn divides by N − 1
    np.testing.assert_allclose(np.abs(ours.encode(torch.from_numpy(x))), np.abs(theirs), atol=1e-3)
    assert ours.report()["explained_variance"] == pytest.approx(oracle.explained_variance_ratio_.sum(), abs=1e-6)


def test_pca_leaves_out_directions_without_variance(feature_set):
    x = data()
    x[:, 3] = x[:, 0] + x[:, 1]
    x[:, 5] = 7
    adapter = fitted("pca", feature_set(x), components=100)
    assert adapter.width == 4
    assert torch.isfinite(adapter.encode(torch.from_numpy(x))).all()
    constant = fitted("standardize", feature_set(x))
    assert constant.report() == {"constant_features": 1}
    assert (constant.encode(torch.from_numpy(x))[:, 5] == 0).all()


def test_standardize_and_pca_lead_back_to_the_features(feature_set):
    x = data()
    x[:, 5] = 7
    features, tensor = feature_set(x), torch.from_numpy(x)
    standard = fitted("standardize", features)
    torch.testing.assert_close(standard.decode(standard.encode(tensor)), tensor, atol=1e-5, rtol=1e-5)
    whole = fitted("pca", features, components=6)
    torch.testing.assert_close(whole.decode(whole.encode(tensor)), tensor, atol=1e-3, rtol=1e-3)
    part, oracle = fitted("pca", features, components=2), PCA(2).fit(x.astype(np.float64))
    back = part.decode(part.encode(tensor))
    np.testing.assert_allclose(back, oracle.inverse_transform(oracle.transform(x)), atol=1e-3)
    codes = Codes(features, part, CPU)
    assert explained_variance(codes) == pytest.approx(part.report()["explained_variance"], abs=1e-5)
    torch.testing.assert_close(part.directions, part.decode(torch.eye(2)) - part.decode(torch.zeros(2, 2)))


def test_the_fixed_functions(feature_set):
    x = data()
    x[0] = 0
    features, tensor = feature_set(x), torch.from_numpy(x)
    assert torch.equal(fitted("identity", features).encode(tensor), tensor)
    np.testing.assert_array_equal(fitted("relu", features).encode(tensor), np.maximum(x, 0))
    np.testing.assert_allclose(fitted("l2norm", features).encode(tensor), normalize(x), atol=1e-6)


def test_the_cache_answers_for_the_same_rows_seed_and_settings_only(feature_set, monkeypatch):
    features, fits = feature_set(data()), []
    from monoeval.adapters.sae import RandomTopK

    fit = RandomTopK.fit
    monkeypatch.setattr(RandomTopK, "fit", lambda self, *a, **k: fits.append(1) or fit(self, *a, **k))

    def ask(features=features, rows=None, seed=0, **params):
        before = len(fits)
        adapter = fit_cached(spec("random-topk", **params), features, rows, seed=seed, device=CPU)
        return len(fits) - before, adapter

    made, first = ask()
    found, second = ask()
    assert (made, found) == (1, 0)
    x = torch.from_numpy(data())
    assert torch.equal(first.encode(x).dense(), second.encode(x).dense())
    assert second.report() == first.report()
    assert ask(rows=np.arange(80))[0] == 0  # all rows, said otherwise
    assert ask(rows=np.arange(79))[0] == 1
    assert ask(seed=1)[0] == 1
    assert ask(width=31, k=3)[0] == 1
    assert ask(features=feature_set(data(), "others"))[0] == 1


def test_what_a_study_asks_for_is_trained_as_one_stack_and_is_what_it_would_be_alone(
    feature_set, tmp_path, monkeypatch
):
    features, stacks = feature_set(data()), []
    from monoeval.adapters import sae

    steps = sae.TopKSteps
    monkeypatch.setattr(sae, "TopKSteps", lambda *a, k, **kw: stacks.append(tuple(k)) or steps(*a, k=k, **kw))

    def ask(k, seed, also=()):
        asked = [(spec("sae", width=32, k=k, steps=30), seed) for k, seed in also]
        made = fit_cached(spec("sae", width=32, k=k, steps=30), features, None, seed=seed, device=CPU, also=asked)
        return made.state(), made.report()

    wanted = [(2, 0), (2, 1), (4, 0)]
    alone = {}
    for k, seed in wanted:
        monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / f"alone-{k}-{seed}"))
        alone[k, seed] = ask(k, seed)
    assert stacks == [(2,), (2,), (4,)]
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "together"))
    stacks.clear()
    for k, seed in wanted:
        state, report = ask(k, seed, wanted)
        assert report == alone[k, seed][1]
        assert all(torch.equal(state[name], tensor) for name, tensor in alone[k, seed][0].items())
    assert stacks == [(2, 2, 4)]  # and then all are there

    for little, divided in ((1, [(2,), (2,), (4,)]), (2, [(2, 2), (4,)])):
        stacks.clear()
        monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / f"little-{little}"))
        each = sae.STACK_BYTES * 32 * data().shape[1]
        monkeypatch.setattr(sae, "free_bytes", lambda _, free=2 * little * each: free)
        assert ask(2, 0, wanted)[1] == alone[2, 0][1]
        assert stacks == divided


def test_an_adapter_knows_its_backbone_and_refuses_the_features_of_another(feature_set, tmp_path):
    ours = replace(feature_set(data()), backbone="one", fingerprint="1")
    more = replace(feature_set(data(90), "more"), backbone="one", fingerprint="1")
    retrained = replace(feature_set(data(), "retrained"), backbone="one", fingerprint="2")
    others = replace(feature_set(data(), "others"), backbone="another", fingerprint="3")
    fit_cached(spec("sae"), ours, None, seed=0, device=CPU, also=[(spec("sae", width=30, k=4, steps=5), 0)])
    folders = [path.parent for path in (tmp_path / "cache" / "adapters").glob("*/adapter.json")]
    held = fit_cached(spec("sae"), ours, None, seed=0, device=CPU)
    assert len(folders) == 2
    for adapter in (held, *map(load, folders), Subset(held, np.arange(5))):
        for known in (ours, more, feature_set(data(), "unknown")):
            assert Codes(known, adapter, CPU).dense().shape[0] == known.n
        with pytest.raises(UsageError, match="fitted on features of one and these are of another: name"):
            Codes(others, adapter, CPU)
        with pytest.raises(UsageError, match="these are of other weights, layer or size of one: name"):
            Codes(retrained, adapter, CPU)
    again = AdapterSpec(method="pretrained", params={"path": str(folders[0])})
    assert build(again).fit(TrainingRows(more, None, CPU), seed=0).width == 30
    with pytest.raises(UsageError, match="fitted on features of one and these are of another: name"):
        build(again).fit(TrainingRows(others, None, CPU), seed=0)


@pytest.mark.parametrize("lost", ["spec", "report"])
def test_a_description_without_what_it_describes_is_one_sentence(lost, feature_set, tmp_path, caplog):
    features = feature_set(data())
    fit_cached(spec("sae"), features, None, seed=0, device=CPU)
    path = next((tmp_path / "cache" / "adapters").glob("*/adapter.json"))
    whole = path.read_text()
    path.write_text(json.dumps({name: value for name, value in json.loads(whole).items() if name != lost}))
    with pytest.raises(MonoevalError, match="does not say which adapter it holds") as told:
        load(path.parent)
    assert "\n" not in str(told.value)
    with caplog.at_level(logging.WARNING, "monoeval"):
        fit_cached(spec("sae"), features, None, seed=0, device=CPU)
    assert "is fitted again" in caplog.text
    assert path.read_text() == whole


@pytest.mark.parametrize("file", ["adapter.safetensors", "adapter.json"])
def test_a_file_cut_short_is_noticed_and_fitted_again(file, feature_set, tmp_path, caplog):
    features = feature_set(data())
    fit_cached(spec("sae"), features, None, seed=0, device=CPU)
    path = next((tmp_path / "cache" / "adapters").glob(f"*/{file}"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with caplog.at_level(logging.WARNING, "monoeval"):
        fit_cached(spec("sae"), features, None, seed=0, device=CPU)
    assert "damaged and is fitted again" in caplog.text
    assert path.read_bytes() == content


def test_methods_without_state_store_nothing_and_seeded_ones_need_a_seed(feature_set, tmp_path):
    features = feature_set(data())
    for method in ("identity", "relu", "l2norm"):
        fit_cached(spec(method), features, None, seed=None, device=CPU)
    assert not (tmp_path / "cache").exists()
    fit_cached(spec("pca"), features, None, seed=None, device=CPU)
    with pytest.raises(ValueError, match="sae needs a seed"):
        fit_cached(spec("sae"), features, None, seed=None, device=CPU)


def test_another_version_is_refused(feature_set, tmp_path, monkeypatch):
    save(fitted("pca", feature_set(data())), spec("pca"), tmp_path / "x")
    monkeypatch.setattr("monoeval.adapters.store.FORMAT", 99)
    with pytest.raises(MonoevalError, match="another version"):
        load(tmp_path / "x")


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("sea", {}, "no method named 'sea': did you mean 'sae'"),
        ("sae", {"kk": 3}, "no sae parameter named 'kk': did you mean 'k'"),
        ("sae", {"k": 0}, r"sae: k cannot be 0 .*; its parameters are width, "),
        ("sae", {"k": -4}, "k cannot be -4"),
        ("sae", {"width": 0}, "width cannot be 0"),
        ("sae", {"width": "64"}, "width cannot be '64'"),
        ("sae", {"k": True}, "k cannot be True"),
        ("sae", {"width": 8, "k": 9}, "k is 9, more than the width of 8"),
        ("random-topk", {"width": 8, "width_factor": 2}, "either width or width_factor"),
        ("relu", {"k": 3}, "relu takes no parameters: leave out k"),
    ],
)
def test_wrong_specs_are_one_sentence(method, params, words):
    wrong = AdapterSpec(method=method, params=params)
    for ask in (spec_of, build):
        with pytest.raises(UsageError, match=words) as caught:
            ask(wrong)
        assert "\n" not in str(caught.value)


def test_controls_match_width_and_sparsity():
    controls = controls_for(AdapterSpec(method="sae", params={"width_factor": 4.0, "k": 8, "steps": 10}))
    assert controls == [
        AdapterSpec(method="random-topk", params={"width_factor": 4.0, "k": 8}),
        AdapterSpec(method="relu"),
    ]
    assert all(METHODS[control.method].is_control for control in controls)
    assert controls_for(AdapterSpec(method="random-topk")) == []
    assert controls_for(AdapterSpec()) == []


def test_methods_of_other_packages(caplog):
    """An entry point names a `Method`; here the modules of this room stand in for another package."""
    good = EntryPoint("mine", "a_package:METHOD", registry.GROUP)
    clash = EntryPoint("sae", "a_package:METHOD", registry.GROUP)
    broken = EntryPoint("gone", "no_such_module_here:METHOD", registry.GROUP)
    module = type(sys)("a_package")
    module.METHOD = registry.Method("mine", "monoeval.adapters.simple:Identity", "mine", seeded=False)
    sys.modules["a_package"] = module
    try:
        with caplog.at_level(logging.WARNING, "monoeval"):
            methods, refused = registry._collect((good, clash, broken))
    finally:
        del sys.modules["a_package"]
    assert methods["mine"] is module.METHOD
    assert list(refused) == ["sae"]
    assert "'gone'" in caplog.text


def test_a_name_that_two_packages_claim_is_refused(monkeypatch):
    monkeypatch.setitem(
        registry._REFUSED, "sae", "other-package offers a method named 'sae', which exists already"
    )
    with pytest.raises(UsageError, match="other-package offers"):
        spec_of(AdapterSpec(method="sae"))


def test_the_registry_needs_no_torch():
    code = "import sys, monoeval.adapters.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
